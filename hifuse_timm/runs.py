"""Files of runs, as `evaluate` and `average` write them, and of metrics of any origin: read with checks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .text import abbreviate

__all__ = ["CLASS_METRICS", "METRICS", "read_metrics", "read_run"]

# Macro averages but for accuracy; ece is the expected calibration error.
METRICS = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "auroc", "ece")
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auroc")

_EXAMPLE = '{"accuracy": 0.83}'

# What a field holds: in words, and as a check.
_Kind = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_FRACTION[1], value)) and value[0] <= value[1]


def _or_null(kind: _Kind) -> _Kind:
    return f"{kind[0]}, or null", lambda value: value is None or kind[1](value)


_TEXT = "a text", lambda value: isinstance(value, str)
_OBJECT = "an object", lambda value: isinstance(value, dict)
_FRACTION = "a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1
_FINITE = "a finite number", lambda value: abs(value) <= sys.float_info.max
_COUNT = "a whole number, 0 or more", lambda value: _is_number(value) and isinstance(value, int) and value >= 0
_INTERVAL = _or_null(("two numbers from 0 to 1, the lower one first", _is_interval))

_FIELDS = {
    **{name: _or_null(_FRACTION) if name == "auroc" else _FRACTION for name in METRICS},
    **dict.fromkeys(("model", "architecture", "title", "split"), _TEXT),
    "dataset": _or_null(_TEXT),
    "per_class": _OBJECT,
    "paper": _or_null(_OBJECT),
}
_FIELDS_OF_CLASS = {"images": _COUNT, "predicted": _COUNT, **dict.fromkeys(CLASS_METRICS, _or_null(_FRACTION))}
_FIELDS_OF_KIND = {
    "evaluation": {
        "counts": {"images": _COUNT, "classes": _COUNT},
        "intervals": {"level": _FRACTION, **dict.fromkeys(METRICS, _INTERVAL)},
        "conditions": _OBJECT,
    },
    "average": {
        "counts": {"runs": _COUNT, "images": _COUNT, "classes": _COUNT},
        "spread": dict.fromkeys(METRICS, _or_null(_OBJECT)),
    },
}
_FIELDS_OF_SPREAD = dict.fromkeys(("std", "min", "max"), _FRACTION)


def read_run(path: Path) -> dict:
    """Read what `evaluate --json` wrote.

    Raises:
        ValueError: If it is anything else; names the field that is missing or wrong.
        OSError: If it cannot be read.
    """
    what = f"run {path} is"
    content = _read_object(path, what)
    if content.get("kind") != "evaluation":
        raise ValueError(f"{what} no evaluation: expected a file that evaluate --json wrote")
    _check_run(content, f"run {path}")
    return content


def read_metrics(path: Path) -> tuple[dict[str, float], dict]:
    """Read the numbers of an object.

    Returns:
        The numbers by name, and all that is in the file if `evaluate` or `average` wrote it.

    Raises:
        ValueError: If it holds no finite numbers, or is a damaged file of `evaluate` or `average`.
        OSError: If it cannot be read.
    """
    content = _read_object(path, f"metrics {path} are")
    is_run = content.get("kind") in ("evaluation", "average")
    if is_run:
        _check_run(content, f"metrics {path}")
    numbers = {name: value for name, value in content.items() if _is_number(value)}
    if not numbers:
        raise ValueError(f"metrics {path} hold {abbreviate(content, 200)}, expected finite numbers as {_EXAMPLE}")
    _check_fields(numbers, dict.fromkeys(numbers, _FINITE), f"metrics {path}")
    return numbers, content if is_run else {}


def _read_object(path: Path, what: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} no JSON: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"{what} a {type(content).__name__}, expected an object as {_EXAMPLE}")
    try:
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} not all of finite numbers ({e}): expected finite numbers as {_EXAMPLE}") from e
    return content


def _check_run(content: dict, what: str) -> None:
    """Check what is read of a run, or an average of some, by anyone."""
    _check_fields(content, _FIELDS | _FIELDS_OF_KIND[content["kind"]], what)
    if not content["per_class"]:
        raise ValueError(f"{what}: per_class is empty, expected an object of the classes")
    for name, of_class in content["per_class"].items():
        _check_fields({name: of_class}, {name: _FIELDS_OF_CLASS}, what, "per_class.")
    for name, spread in content.get("spread", {}).items():
        if spread is not None:
            _check_fields({name: spread}, {name: _FIELDS_OF_SPREAD}, what, "spread.")
    if content["paper"] is not None:
        numbers = dict.fromkeys(content["paper"], _FRACTION)
        _check_fields(content["paper"], numbers | {"method": _TEXT}, what, "paper.")


def _check_fields(content: dict, fields: dict[str, _Kind | dict], what: str, within: str = "") -> None:
    for name, kind in fields.items():
        field = within + name
        if name not in content:
            raise ValueError(f"{what} lacks {abbreviate(field, 80)}, which evaluate and average write")
        value = content[name]
        if isinstance(kind, dict):
            if isinstance(value, dict):
                _check_fields(value, kind, what, f"{field}.")
                continue
            kind = _OBJECT
        expected, fits = kind
        if not fits(value):
            shown = abbreviate(json.dumps(value), 80)
            raise ValueError(f"{what}: {abbreviate(field, 80)} is {shown}, expected {expected}")
