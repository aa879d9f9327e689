"""Objects of JSON files of any origin, read with checks of what each field holds."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .text import abbreviate

__all__ = [
    "CHECKSUM",
    "COUNT",
    "FINITE",
    "FRACTION",
    "OBJECT",
    "TEXT",
    "Kind",
    "between",
    "check_fields",
    "interval_of",
    "is_number",
    "or_null",
    "read_object",
]

# What a field holds: in words, and as a check.
Kind = tuple[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, which true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def between(lower: float, upper: float) -> Kind:
    """The kind of a field that holds a number within these limits."""
    return f"a number from {lower:g} to {upper:g}", lambda value: is_number(value) and lower <= value <= upper


def or_null(kind: Kind) -> Kind:
    """The kind of a field that may hold null too."""
    return f"{kind[0]}, or null", lambda value: value is None or kind[1](value)


def interval_of(kind: Kind) -> Kind:
    """The kind of a field that holds two values of a kind, or null."""

    def is_interval(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(map(kind[1], value)) and value[0] <= value[1]

    return or_null((f"two of {kind[0]}, the lower one first", is_interval))


TEXT = "a text", lambda value: isinstance(value, str)
OBJECT = "an object", lambda value: isinstance(value, dict)
FRACTION = between(0, 1)
FINITE = "a finite number", lambda value: is_number(value) and abs(value) <= sys.float_info.max
CHECKSUM = (
    "a SHA-256 of 64 digits",
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
COUNT = "a whole number, 0 or more", lambda value: is_number(value) and isinstance(value, int) and value >= 0


def read_object(path: Path, what: str, example: str) -> dict:
    """Read an object of finite numbers, texts, lists and objects.

    Args:
        path: File to read.
        what: What it is, and a verb, as errors begin.
        example: What would be right.

    Raises:
        ValueError: If the file holds anything else.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} no JSON: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"{what} a {type(content).__name__}, expected an object as {example}")
    try:
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} not all of finite numbers ({e}): expected finite numbers as {example}") from e
    return content


def check_fields(content: dict, fields: dict[str, Kind | dict], what: str, writer: str, within: str = "") -> None:
    """Check that an object has fields of these kinds, a dict for an object in it.

    Args:
        content: The object; what else it has is passed over.
        fields: The kinds by name.
        what: What the object is, as errors begin.
        writer: The command, and a verb, that writes such objects.
        within: What stands in front of the fields' names in errors.

    Raises:
        ValueError: If a field is missing or of another kind; names it.
    """
    for name, kind in fields.items():
        field = within + name
        if name not in content:
            raise ValueError(f"{what} lacks {abbreviate(field, 80)}, which {writer}")
        value = content[name]
        if isinstance(kind, dict):
            if isinstance(value, dict):
                check_fields(value, kind, what, writer, f"{field}.")
                continue
            kind = OBJECT
        expected, fits = kind
        if not fits(value):
            shown = abbreviate(json.dumps(value), 80)
            raise ValueError(f"{what}: {abbreviate(field, 80)} is {shown}, expected {expected}")
