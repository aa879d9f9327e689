"""Which image a list means."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from .archives import is_image

__all__ = ["NameFinder", "strip_ending"]

# Endings of images, beside those of timm's readers, that lists may name or leave out.
_ENDINGS = {".bmp", ".dcm", ".dicom", ".gif", ".ima", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}


def strip_ending(path: str) -> str:
    """A path without its ending, if that is one of images: `1.2.840.10008` has none."""
    ending = PurePosixPath(path).suffix
    return path.removesuffix(ending) if is_image(path) or ending.lower() in _ENDINGS else path


class NameFinder:
    """Finds images by names with or without folder and ending, written in whatever case.

    Args:
        paths: Paths of the images.
    """

    def __init__(self, paths: Iterable[str]):
        self._paths = defaultdict(list)
        for path in paths:
            self._paths[self._key(path)].append(path)

    @staticmethod
    def _key(path: str) -> str:
        return strip_ending(path).rpartition("/")[2].casefold()

    def find(self, name: str) -> list[str]:
        """The images that fit the name best: none, one, or several that fit it alike."""
        name = name.replace("\\", "/").removeprefix("./")
        paths = self._paths.get(self._key(name), [])
        bare, last = strip_ending(name), name.rpartition("/")[2]
        for fits in (
            lambda path: path == name,
            lambda path: _ends_alike(path, name),
            lambda path: _ends_alike(strip_ending(path), bare),
            lambda path: path.rpartition("/")[2] == last,
            lambda path: True,
        ):
            if found := [path for path in paths if fits(path)]:
                return found
        return []


def _ends_alike(a: str, b: str) -> bool:
    """Whether one path is the end of the other."""
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")
