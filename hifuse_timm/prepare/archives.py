"""The files of a dataset as downloaded, from folders or zip archives whose member names are not trusted."""

import os
import re
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from timm.data.readers import get_img_extensions

__all__ = ["Finding", "Part", "SourceFile", "find_part", "is_image", "list_all"]

# What operating systems leave in folders and archives.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
# Far above any file of the three datasets; a member that says it is larger is not read.
_MAX_MEMBER_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that its user should know.

    Attributes:
        kind: Short name of what was found, as `unreadable-image`.
        message: What it means and what happens to the files.
        files: The files, images or rows that it is about.
        error: Whether the dataset is not what its provider published, or not fit for use as it is.
    """

    kind: str
    message: str
    files: tuple[str, ...] = ()
    error: bool = True


@dataclass(frozen=True)
class SourceFile:
    """A file of a part of a dataset.

    Attributes:
        path: Where it lies within the part.
        read: Reads its content; may be called from several threads.
        origin: The file on disk, None for a member of an archive.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    origin: Path | None = None


@dataclass
class Part:
    """A folder as the provider names it, unpacked or still in an archive of the same name.

    Attributes:
        location: The folder or the archive.
        files: Files by path within the part.
        findings: What is wrong with the part itself.
    """

    location: Path
    files: dict[str, SourceFile] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def read_bytes(self, path: str) -> bytes:
        """Read a file.

        Raises:
            ValueError: If it is a damaged member of an archive.
        """
        try:
            return self.files[path].read()
        except (zipfile.BadZipFile, zlib.error) as e:
            raise ValueError(f"{path} in {self.location} cannot be read: {e}") from e

    def read_text(self, path: str) -> str:
        """Read a text file.

        Raises:
            ValueError: If it is no text.
        """
        try:
            return self.read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise ValueError(f"{path} in {self.location} cannot be read as text: {e}") from e


def is_image(path: str | PurePosixPath) -> bool:
    """Whether timm's readers take a file of this name for an image."""
    return PurePosixPath(path).suffix.lower() in get_img_extensions()


def find_part(source: Path, name: str, stack: ExitStack, within: Sequence[str] = ()) -> Part | None:
    """Find a part of a dataset and list its files.

    Args:
        source: What the user gave: a folder that holds the part or is the part, or the part's archive.
        name: The provider's name of the part.
        stack: Takes an archive that stays open for reading.
        within: Folders of the source to look into as well.

    Returns:
        The part, None if it is not there. A folder goes before an archive.

    Raises:
        ValueError: If its archive is damaged or is none.
    """
    bases = [source, *(source / folder for folder in within)]
    folders = [base for base in bases if base.resolve().name == name] + [base / name for base in bases]
    archives = [base for base in bases if base.name == f"{name}.zip"] + [base / f"{name}.zip" for base in bases]
    folder = next((path for path in folders if path.is_dir()), None)
    archive = next((path for path in archives if path.is_file()), None)
    if folder is not None:
        part = _list_folder(folder, name)
        if archive is not None:
            message = f"{folder.name} lies there unpacked and as an archive: the folder was read"
            part.findings.append(Finding("two-forms", message, error=False))
        return part
    return _list_archive(archive, name, stack) if archive is not None else None


def list_all(source: Path, stack: ExitStack) -> Part:
    """List the files of a folder or of an archive, as a part; as for `find_part`."""
    return _list_folder(source) if source.is_dir() else _list_archive(source, "", stack)


def _list_folder(folder: Path, name: str = "") -> Part:
    part = Part(folder)
    links = []
    for root, folders, files in os.walk(folder):
        for entry in sorted([*folders, *files]):
            path = Path(root, entry)
            # what is written of a name is UTF-8, which names on disk need not be
            relative = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
            inside = _strip_folder(PurePosixPath(relative), name)
            if path.is_symlink():
                links.append(str(inside))
            elif path.is_file() and not _is_litter(inside):
                part.files[str(inside)] = SourceFile(inside, path.read_bytes, path)
    if links:
        part.findings.append(Finding("unsafe-member", f"links in {folder.name}: not followed", tuple(links)))
    return part


def _list_archive(path: Path, name: str, stack: ExitStack) -> Part:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except zipfile.BadZipFile as e:
        raise ValueError(f"{path} is no whole zip archive: {e}; download it again") from e
    lock = threading.Lock()

    def make_reader(info: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with lock:  # members share the archive's file
                return archive.read(info)

        return read

    part = Part(path)
    unsafe = []
    members: list[tuple[str, SourceFile]] = []
    for info in archive.infolist():
        member = PurePosixPath(info.filename.replace("\\", "/"))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if (
            not info.filename
            or member.is_absolute()
            or ".." in member.parts
            or re.match("[A-Za-z]:", info.filename)
            or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
            or info.file_size > _MAX_MEMBER_BYTES
        ):
            unsafe.append(info.filename)
        elif not info.is_dir() and not _is_litter(member):
            inside = _strip_folder(member, name)
            members.append((str(inside), SourceFile(inside, make_reader(info))))
    if unsafe:
        message = (
            f"members of {path.name} that have no name, would land outside the target, are links or are oversized: "
            "left out"
        )
        part.findings.append(Finding("unsafe-member", message, tuple(unsafe)))
    counts = Counter(inside for inside, _ in members)
    repeated = tuple(inside for inside, count in counts.items() if count > 1)
    if repeated:
        message = f"members that {path.name} holds more than once: left out"
        part.findings.append(Finding("repeated-member", message, repeated))
    part.files = {inside: file for inside, file in members if counts[inside] == 1}
    return part


def _strip_folder(path: PurePosixPath, name: str) -> PurePosixPath:
    """The path within the folder `name`, which archives hold once and some unpackers make twice."""
    parts = path.parts
    while name in parts[:-1]:
        parts = parts[parts.index(name) + 1 :]
    return PurePosixPath(*parts)


def _is_litter(path: PurePosixPath) -> bool:
    return path.name in _LITTER or path.name.startswith("._") or "__MACOSX" in path.parts
