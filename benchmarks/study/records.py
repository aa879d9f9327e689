"""Reading of the JSON files that this package writes into a study's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def read_record(path: Path, cls: type[T], kind: str) -> T:
    """The object that a file holds as JSON, the arguments of its class beside its kind.

    Args:
        path: The file.
        cls: Class of the object.
        kind: What the file says under `kind`, as `accuracy-study`.

    Raises:
        ValueError: If it is something else, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("kind") != kind:
            raise KeyError("kind")
        return cls(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = kind.removeprefix("accuracy-")
        raise ValueError(f"{path} is no {what} of python -m benchmarks accuracy ({error})") from error
