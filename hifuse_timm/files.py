"""Files and folders that are whole at any time, checks before long work, JSON, checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "replacing_file", "replacing_folder", "save_figure", "sha256", "write_json", "write_text"]


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside this one to write to, which takes its place in the end, and is gone if anything fails."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a new folder beside this one that takes its place in the end, and is gone if anything fails.

    A folder that was there before stays until then, and comes back where the new one cannot take its place.
    """
    folder = Path(folder).resolve()  # where a link leads is where there is room
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    before = folder.with_name(f".{folder.name}.{os.getpid()}.before")
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(before)
        try:
            beside.rename(folder)
        except BaseException:
            if before.exists():
                before.rename(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
    """Check before long work that a file, or a folder, can be written.

    Raises:
        OSError: If what it is to be written in is missing, or it is a folder where a file is to be, or the reverse.
    """
    if path is None:
        return
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent}, to write {path.name} in, does not exist")
    if path.exists() and path.is_dir() != directory:
        kinds = ("file", "folder") if directory else ("folder", "file")
        raise FileExistsError(f"{path} is a {kinds[0]}, expected a {kinds[1]}")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    checksum = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            checksum.update(chunk)
    return checksum.hexdigest()
