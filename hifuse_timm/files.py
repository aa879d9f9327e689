"""Files and folders that are whole at any time, checks before long work, JSON, checksums."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "check_replaceable",
    "check_writable",
    "replacing_file",
    "replacing_folder",
    "save_figure",
    "sha256",
    "write_json",
    "write_text",
]

# What is made in a folder of this name, which nobody else can guess or enter, has the mode of any new file.
_SCRATCH = ".writing-"


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to; what is there in the end takes the place of this file, or is gone if anything fails.

    Where the path is a link, that is the file that it leads to. A file keeps its mode. What is no regular file, as
    `/dev/stdout`, a device or a FIFO, and a file that nothing can take the place of are written into.
    """
    path = Path(path)
    into = _is_written_into(path)
    target = path.resolve()
    folder = None if into else target.parent
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True) as scratch:
        beside = Path(scratch, target.name)
        yield beside
        if into:
            _write_into(path, beside)
            return
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)


@contextmanager
def replacing_folder(folder: str | Path, list_written: Callable[[Path], set[str]]) -> Iterator[Path]:
    """Gives a new folder to fill, which takes the place of this one in the end, or is gone if anything fails.

    A folder that was there before stays until then, and comes back where the new one cannot take its place. One that
    cannot be moved, as a mount point, changes its content instead.

    Args:
        folder: The folder. Where it is a link, that is the folder that it leads to.
        list_written: Lists the files that an earlier run left in a folder, as paths relative to it.

    Raises:
        FileExistsError: If the folder holds anything else in the end; it stays as it is then.
    """
    folder = Path(folder).resolve()  # where a link leads is where there is room
    in_place = folder.is_dir() and _is_held(folder)
    room = folder if in_place else folder.parent
    room.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=room, ignore_cleanup_errors=True) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if in_place:
            old.mkdir()
            moves = [(path, old / path.name) for path in folder.iterdir() if path.name != Path(scratch).name]
            moves += [(path, folder / path.name) for path in new.iterdir()]
        else:
            moves = [(new, folder)]
            if folder.exists():
                new.chmod(stat.S_IMODE(folder.stat().st_mode))
                moves.insert(0, (folder, old))
        with _moving(moves):
            _check_only(list_written, old, folder)  # what came while the new folder was filled


@contextmanager
def _moving(moves: list[tuple[Path, Path]]) -> Iterator[None]:
    """Renames all of these, and back if anything fails, within the block too."""
    try:
        for source, target in moves:
            source.rename(target)
        yield
    except BaseException:  # an interrupt may come behind any of them: the disk knows which were done
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
                target.rename(source)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text so that its file is whole at any time."""
    with replacing_file(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may not be UTF-8


def write_json(path: str | Path, content: dict) -> None:
    """Write an object as JSON so that its file is whole at any time."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def save_figure(figure, path: Path) -> None:
    """Write a picture, in the format that the file's name ends in, so that the file is whole at any time."""
    with replacing_file(path) as beside:
        figure.savefig(beside, format=path.suffix[1:].lower(), dpi=150)


def check_writable(path: str | Path | None, directory: bool = False) -> None:
    """Check before long work that a file, or a folder and what it lies in, can be written.

    Raises:
        OSError: If it cannot be written, what a file is to be written in is missing, or it is a folder where a file is
            to be, or the reverse.
    """
    if path is None:
        return
    path = Path(path)
    if path.exists():
        if path.is_dir() != directory:
            kinds = ("file", "folder") if directory else ("folder", "file")
            raise FileExistsError(f"{path} is a {kinds[0]}, expected a {kinds[1]}")
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
        return
    parent = path.resolve().parent
    while directory and not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        what = "is no folder" if parent.exists() else "does not exist"
        raise FileNotFoundError(f"{parent}, to write {path.name} in, {what}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{parent}, to write {path.name} in, is not writable")


def check_replaceable(folder: str | Path, list_written: Callable[[Path], set[str]]) -> None:
    """Check before long work what `replacing_folder` checks in the end, and that the folder can be written.

    Raises:
        OSError: If it cannot; FileExistsError if the folder holds anything but what an earlier run left.
    """
    check_writable(folder, directory=True)
    _check_only(list_written, Path(folder), Path(folder))


def _check_only(list_written: Callable[[Path], set[str]], folder: Path, name: Path) -> None:
    """Check that a folder, or none, holds but what an earlier run wrote; `name` is what the user calls it."""
    found = {  # folders count by what they hold, links by themselves
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }
    others = sorted(found - list_written(folder)) if found else []
    if others:
        raise FileExistsError(
            f"{name} holds other files, {', '.join(others[:3])} among them: give a new folder, or move them elsewhere"
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    checksum = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            checksum.update(chunk)
    return checksum.hexdigest()


def _is_written_into(path: Path) -> bool:
    """Whether a file is there that cannot be replaced."""
    return path.exists() and (not path.is_file() or _find_descriptor(path) is not None or _is_held(path.resolve()))


def _write_into(path: Path, content: Path) -> None:
    """Write the content of a file into another, behind what was printed so far where it is the standard output."""
    print(end="", flush=True)
    descriptor = _find_descriptor(path)
    with content.open("rb") as source, open(path if descriptor is None else os.dup(descriptor), "wb") as target:
        shutil.copyfileobj(source, target)


def _find_descriptor(path: Path) -> int | None:
    """The number of the open file that a path stands for, as /dev/stdout and /dev/fd/3 do, None for any other path."""
    folders = {Path("/dev/fd"), Path("/proc/self/fd").resolve()}
    while path.parent.resolve() not in folders:
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return int(path.name)


def _is_held(path: Path) -> bool:
    """Whether a file or folder cannot be moved away: it is a mount point, or what it lies in is not writable."""
    try:
        # lists the mounts of files and of folders of the same device, which os.path.ismount does not know
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        mounts = []
    is_mount = os.path.ismount(path) or str(path).replace(" ", r"\040") in mounts
    return is_mount or not os.access(path.parent, os.W_OK | os.X_OK)
