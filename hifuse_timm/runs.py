"""Files of runs, as `evaluate` and `average` write them, and of metrics of any origin: read with checks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .text import abbreviate

__all__ = ["CLASS_METRICS", "METRICS", "SPECIFICITIES", "read_metrics", "read_run"]

# The sensitivities at a specificity that are measured.
SPECIFICITIES = {"sensitivity_at_90_specificity": 0.9, "sensitivity_at_95_specificity": 0.95}

# Runs of version 0.1 lack these.
_LATER = ("average_precision", "kappa", "mcc", "brier", *SPECIFICITIES)
_LATER_OF_CLASS = ("average_precision", *SPECIFICITIES)

# Macro averages but for accuracy, kappa (Cohen's), mcc (Matthews correlation coefficient), brier, and ece, which is the
# expected calibration error.
METRICS = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "auroc", "ece", *_LATER)
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auroc", *_LATER_OF_CLASS)

_EXAMPLE = '{"accuracy": 0.83}'

# What a field holds: in words, and as a check.
_Kind = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _between(lower: int, upper: int) -> _Kind:
    return f"a number from {lower} to {upper}", lambda value: _is_number(value) and lower <= value <= upper


def _or_null(kind: _Kind) -> _Kind:
    return f"{kind[0]}, or null", lambda value: value is None or kind[1](value)


def _interval_of(kind: _Kind) -> _Kind:
    def is_interval(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(map(kind[1], value)) and value[0] <= value[1]

    return _or_null((f"two of {kind[0]}, the lower one first", is_interval))


_TEXT = "a text", lambda value: isinstance(value, str)
_OBJECT = "an object", lambda value: isinstance(value, dict)
_FRACTION = _between(0, 1)
_FINITE = "a finite number", lambda value: abs(value) <= sys.float_info.max
_COUNT = "a whole number, 0 or more", lambda value: _is_number(value) and isinstance(value, int) and value >= 0

_METRICS = dict.fromkeys(METRICS, _FRACTION) | dict(kappa=_between(-1, 1), mcc=_between(-1, 1), brier=_between(0, 2))
_VALUES = {name: _or_null(kind) if name in ("auroc", *_LATER) else kind for name, kind in _METRICS.items()}
_INTERVALS = {"level": _FRACTION, **{name: _interval_of(kind) for name, kind in _METRICS.items()}}
_FIELDS = {
    **_VALUES,
    **dict.fromkeys(("model", "architecture", "title", "split"), _TEXT),
    "dataset": _or_null(_TEXT),
    "per_class": _OBJECT,
    "paper": _or_null(_OBJECT),
}
_FIELDS_OF_CLASS = {"images": _COUNT, "predicted": _COUNT, **dict.fromkeys(CLASS_METRICS, _or_null(_FRACTION))}
_FIELDS_OF_KIND = {
    "evaluation": {
        "counts": {"images": _COUNT, "classes": _COUNT},
        "intervals": _INTERVALS,
        "conditions": _OBJECT,
    },
    "average": {
        "counts": {"runs": _COUNT, "images": _COUNT, "classes": _COUNT},
        "spread": dict.fromkeys(METRICS, _or_null(_OBJECT)),
    },
}
_FIELDS_OF_POOL = {**_VALUES, "counts": {"images": _COUNT}, "intervals": _INTERVALS}


def read_run(path: Path) -> dict:
    """Read what `evaluate --json` wrote; metrics that versions before did not know are None.

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
    _fill_later(content)
    _check_fields(content, _FIELDS | _FIELDS_OF_KIND[content["kind"]], what)
    if not content["per_class"]:
        raise ValueError(f"{what}: per_class is empty, expected an object of the classes")
    for name, of_class in content["per_class"].items():
        _check_fields({name: of_class}, {name: _FIELDS_OF_CLASS}, what, "per_class.")
    for name, spread in content.get("spread", {}).items():
        if spread is not None:
            kind = _METRICS.get(name, _FRACTION)
            _check_fields({name: spread}, {name: dict(std=_between(0, 2), min=kind, max=kind)}, what, "spread.")
    if "pooled" in content:
        _check_fields(content, {"pooled": _FIELDS_OF_POOL}, what)
    for inside, within in ((content, ""), (content.get("pooled", {}), "pooled.")):
        if inside.get("intervals", {}).get("unit") == "groups":
            _check_fields(inside, {"intervals": {"groups": _COUNT}}, what, within)
    if content["paper"] is not None:
        numbers = dict.fromkeys(content["paper"], _FRACTION)
        _check_fields(content["paper"], numbers | {"method": _TEXT}, what, "paper.")


def _fill_later(content: dict) -> None:
    """Put in None where a run of an earlier version lacks a metric."""

    def fill(inside: Any, names: tuple[str, ...]) -> None:
        if isinstance(inside, dict):
            for name in names:
                inside.setdefault(name)

    for inside in (content, content.get("intervals"), content.get("spread")):
        fill(inside, _LATER)
    per_class = content.get("per_class")
    for of_class in per_class.values() if isinstance(per_class, dict) else []:
        fill(of_class, _LATER_OF_CLASS)


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
