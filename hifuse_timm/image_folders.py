"""Folders of images as timm reads them, and what says the order of their classes."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from .errors import shorten
from .images import FORMATS
from .text import abbreviate

__all__ = ["ImageFolder", "find_class_names", "find_images", "is_image", "read_class_map", "walk_files"]

_logger = logging.getLogger(__name__)

_DICOM_ENDINGS = (".dcm", ".dicom")

_LARGEST_CLASS_MAP = 1 << 20  # bytes; ImageNet's 21,841 classes take 240,000


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, each in a folder that names its class.

    Attributes:
        samples: Path and class of each image, in timm's order.
        classes: The names of the classes that have images, in timm's order.
        left_out: Images in formats that timm's reader leaves out.
        repeated: Files and folders that links lead to again, each of which counts once.
    """

    samples: list[tuple[str, str]]
    classes: list[str]
    left_out: list[str]
    repeated: list[str]


def find_images(folder: str | Path) -> ImageFolder:
    """Find the images in a folder as timm's reader does, but each of them once, wherever links lead.

    The class of an image is the name of the folder that it lies in, however deep that is; none where it lies in
    `folder` itself.

    Raises:
        OSError: If a folder cannot be read.
    """
    formats, others = get_img_extensions(as_set=True), {*Image.registered_extensions(), *_DICOM_ENDINGS}
    root = str(folder)
    samples, left_out, repeated = [], [], []
    seen = {os.path.realpath(root)}
    level = [root]
    while level:  # level by level and links last, so that what is reached twice stands where it lies
        entries = [entry for inside in level for entry in os.scandir(inside)]
        level = []
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), natural_key(entry.path))):
            inside, (_, ending) = os.path.dirname(entry.path), os.path.splitext(entry.name)
            label = "" if inside == root else os.path.basename(inside)
            if entry.is_dir():
                place, found = os.path.realpath(entry.path), level
            elif ending.lower() in formats:
                place, found = (os.path.realpath(entry.path), label), samples
            else:
                if ending.lower() in others:
                    left_out.append(entry.path)
                continue
            if place in seen:
                found = repeated
            seen.add(place)
            found.append((entry.path, label) if found is samples else entry.path)
    samples.sort(key=lambda sample: natural_key(sample[0]))
    return ImageFolder(samples, sorted({label for _, label in samples}, key=natural_key), left_out, repeated)


def walk_files(sources: Iterable[str | Path]) -> Iterator[str]:
    """Walk through files and folders with all in them, giving each file once, wherever links lead.

    The files of a folder come in the order of `find_images`. In memory are the names in the folders on the way to
    a file, and where links lead out of the sources; never all files.

    Raises:
        OSError: If a source is not there, or a folder cannot be read.
    """
    sources = list(map(str, sources))
    for source in sources:
        if not os.path.exists(source):
            raise FileNotFoundError(f"source {source} does not exist")
    places = {}
    for source in sources:
        places.setdefault(os.path.realpath(source), source)
    begun = set(places)  # each of which is walked through by itself
    for source in places.values():
        yield from _walk(source, begun) if os.path.isdir(source) else [source]


def _walk(folder: str, begun: set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        # a folder is sorted as its files are, by their whole paths
        names = sorted((entry.name + os.sep * entry.is_dir() for entry in entries), key=natural_key)
    real_folder = os.path.realpath(folder)
    for name in names:
        path, place = (os.path.join(inside, name.rstrip(os.sep)) for inside in (folder, real_folder))
        if os.path.islink(path):
            place = os.path.realpath(path)
            if not begun.isdisjoint(map(str, [place, *Path(place).parents])):
                continue  # it is reached without the link
            begun.add(place)
        elif place in begun:
            continue
        if name.endswith(os.sep):
            yield from _walk(path, begun)
        else:
            yield path


def is_image(file: str) -> bool:
    """Whether a file is meant as an image that is read here, by the ending of its name or as DICOM by its first bytes.

    Raises:
        OSError: If it has another ending and cannot be read.
    """
    ending = os.path.splitext(file)[1].lower()
    if ending in _DICOM_ENDINGS or Image.registered_extensions().get(ending) in FORMATS:
        return True
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as f:
        return f.read(132)[128:] == b"DICM"


def find_class_names(
    data_dir: str | Path | None,
    description: dict,
    class_map: str | Path | None,
    trained_map: str | None,
    folders: Sequence[str],
    classes: Sequence[str] | None = None,
) -> tuple[list[str] | None, str]:
    """The names of the classes in the order of their indices, and what names them.

    Args:
        data_dir: Folder of a dataset, whose train folder train.py read.
        description: What its dataset.json says, which goes first.
        class_map: Class map to take in their place.
        trained_map: Name of the class map that train.py was given, taken unless class_map is.
        folders: Names of the class folders at hand, where there is nothing else; this is logged as a warning.
        classes: The names themselves, in the place of all else.

    Raises:
        OSError: If a class map is not there.
        ValueError: If a class map is not as it should be, classes has one twice or is given beside a class map, or
            nothing names the classes of data_dir.
    """
    if classes is not None:
        if class_map is not None:
            raise ValueError(f"classes and class map {class_map} are both given: expected one of them")
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes has a name twice: {shorten(classes)}")
        return list(classes), "classes"
    if class_map is None and trained_map is not None:
        class_map = _find_class_map(trained_map, data_dir)
    if class_map is not None:
        return read_class_map(class_map), f"class map {class_map}"
    if data_dir is None:
        return None, ""
    data_dir = Path(data_dir)
    if description:
        return description["classes"], f"{data_dir / 'dataset.json'}"
    if (data_dir / "train").is_dir():  # a split may lack a class, which would shift those behind it
        return find_images(data_dir / "train").classes, f"{data_dir / 'train'}"
    if not folders:
        raise ValueError(f"data_dir {data_dir} names no classes: expected dataset.json, as prepare writes it, or train")
    _logger.warning(
        f"{data_dir} has neither dataset.json nor train, which say the order of the classes in the training: it is "
        f"taken to be {shorten(folders)}. If it was another, or of more classes, give a class map"
    )
    return list(folders), f"the folders in {data_dir}"


def _find_class_map(named: str, data_dir: str | Path | None) -> Path:
    """The class map that train.py was given, where train.py looks for it. A stranger may have chosen the name."""
    paths = [Path(named)] if data_dir is None else [Path(named), Path(data_dir, "train", named)]
    if not named.startswith(("//", "\\\\")):  # of another machine
        for path in paths:
            if os.path.isfile(path):  # whatever the name, which may be longer than any
                return path
    raise FileNotFoundError(
        f"the training was given the class map {abbreviate(named, 200)}, which says the order of the classes and is "
        "not there: give it as class_map (--class-map FILE)"
    )


def read_class_map(path: str | Path) -> list[str]:
    """The names of the classes in a class map of train.py: a text file with a name on each line, in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text file, or a name is missing or stands there twice.
    """
    path = Path(path)
    if path.suffix.lower() != ".txt":
        raise ValueError(f"class map {path} must be a text file with the name of a class on each line, named .txt")
    if not path.is_file():
        raise FileNotFoundError(f"class map {path} does not exist or is not a file")
    if path.stat().st_size > _LARGEST_CLASS_MAP:
        raise ValueError(f"class map {path} has {path.stat().st_size:,} bytes, too many for a list of classes")
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"class map {path} is no text in UTF-8") from e
    names = [line.strip() for line in lines]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = "names a class again" if name else "is empty"
            raise ValueError(f"class map {path}: line {number + 1} {fault}, expected another class on each line")
    return names
