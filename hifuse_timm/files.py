"""Files and folders that are whole at any time: written beside their place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing_file", "replacing_folder"]


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
