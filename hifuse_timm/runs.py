"""Files of runs, as `evaluate` and `average` write them, and of metrics of any origin: read with checks."""

from pathlib import Path
from typing import Any

from .fields import (
    COUNT,
    FINITE,
    FRACTION,
    OBJECT,
    TEXT,
    Kind,
    between,
    check_fields,
    interval_of,
    is_number,
    or_null,
    read_object,
)
from .text import abbreviate

__all__ = ["CLASS_METRICS", "METRICS", "SPECIFICITIES", "SUBGROUP_METRICS", "read_metrics", "read_run"]

# The sensitivities at a specificity that are measured.
SPECIFICITIES = {"sensitivity_at_90_specificity": 0.9, "sensitivity_at_95_specificity": 0.95}

# Runs of version 0.1 lack these.
_LATER = ("average_precision", "kappa", "mcc", "brier", *SPECIFICITIES)
_LATER_OF_CLASS = ("average_precision", *SPECIFICITIES)

# Macro averages but for accuracy, kappa (Cohen's), mcc (Matthews correlation coefficient), brier, and ece, which is the
# expected calibration error.
METRICS = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "auroc", "ece", *_LATER)
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auroc", *_LATER_OF_CLASS)
SUBGROUP_METRICS = ("accuracy", "balanced_accuracy", "f1", "auroc")

_EXAMPLE = '{"accuracy": 0.83}'

_WRITER = "evaluate and average write"

_RESAMPLES = "a whole number from 1 to 1,000,000", lambda value: COUNT[1](value) and 1 <= value <= 1_000_000
_SEED = "a whole number of 64 bits", lambda value: is_number(value) and isinstance(value, int) and abs(value) < 2**63
_UNIT = "groups or images", lambda value: value in ("groups", "images")

_METRICS = dict.fromkeys(METRICS, FRACTION) | dict(kappa=between(-1, 1), mcc=between(-1, 1), brier=between(0, 2))
_VALUES = {name: or_null(kind) if name in ("auroc", *_LATER) else kind for name, kind in _METRICS.items()}
_BOUNDS = {name: interval_of(kind) for name, kind in _METRICS.items()}
_INTERVALS = {"level": FRACTION, **_BOUNDS}
_FIELDS = {
    **_VALUES,
    **dict.fromkeys(("model", "architecture", "title", "split"), TEXT),
    "dataset": or_null(TEXT),
    "per_class": OBJECT,
    "paper": or_null(OBJECT),
}
_FIELDS_OF_CLASS = {"images": COUNT, "predicted": COUNT, **dict.fromkeys(CLASS_METRICS, or_null(FRACTION))}
_FIELDS_OF_SUBGROUP = {
    "images": COUNT,
    **dict.fromkeys(SUBGROUP_METRICS, or_null(FRACTION)),
    "intervals": dict.fromkeys(SUBGROUP_METRICS, interval_of(FRACTION)),
}
_FIELDS_OF_KIND = {
    "evaluation": {
        "counts": {"images": COUNT, "classes": COUNT},
        "intervals": _INTERVALS | dict(method=TEXT, unit=_UNIT, resamples=_RESAMPLES, seed=_SEED),
        "conditions": OBJECT,
    },
    "average": {
        "counts": {"runs": COUNT, "images": COUNT, "classes": COUNT},
        "spread": dict.fromkeys(METRICS, or_null(OBJECT)),
    },
}
_FIELDS_OF_POOL = {**_VALUES, "counts": {"images": COUNT}, "intervals": _INTERVALS}


def read_run(path: Path) -> dict:
    """Read what `evaluate --json` wrote; metrics that versions before did not know are None.

    Raises:
        ValueError: If it is anything else; names the field that is missing or wrong.
        OSError: If it cannot be read.
    """
    what = f"run {path} is"
    content = read_object(path, what, _EXAMPLE)
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
    content = read_object(path, f"metrics {path} are", _EXAMPLE)
    is_run = content.get("kind") in ("evaluation", "average")
    if is_run:
        _check_run(content, f"metrics {path}")
    numbers = {name: value for name, value in content.items() if is_number(value)}
    if not numbers:
        raise ValueError(f"metrics {path} hold {abbreviate(content, 200)}, expected finite numbers as {_EXAMPLE}")
    check_fields(numbers, dict.fromkeys(numbers, FINITE), f"metrics {path}", _WRITER)
    return numbers, content if is_run else {}


def _check_run(content: dict, what: str) -> None:
    """Check what is read of a run, or an average of some, by anyone."""
    _fill_later(content)
    check_fields(content, _FIELDS | _FIELDS_OF_KIND[content["kind"]], what, _WRITER)
    if not content["per_class"]:
        raise ValueError(f"{what}: per_class is empty, expected an object of the classes")
    for name, of_class in content["per_class"].items():
        check_fields({name: of_class}, {name: _FIELDS_OF_CLASS}, what, _WRITER, "per_class.")
    for name, spread in content.get("spread", {}).items():
        if spread is not None:
            kind = _METRICS.get(name, FRACTION)
            check_fields({name: spread}, {name: dict(std=between(0, 2), min=kind, max=kind)}, what, _WRITER, "spread.")
    if "pooled" in content:
        check_fields(content, {"pooled": _FIELDS_OF_POOL}, what, _WRITER)
    for inside, within in ((content, ""), (content.get("pooled", {}), "pooled.")):
        if inside.get("intervals", {}).get("unit") == "groups":
            check_fields(inside, {"intervals": {"groups": COUNT}}, what, _WRITER, within)
    _check_all(content, "in_train", COUNT, what)
    if content["kind"] == "evaluation":
        _check_parts(content, what)
    if content["paper"] is not None:
        numbers = dict.fromkeys(content["paper"], FRACTION)
        check_fields(content["paper"], numbers | {"method": TEXT}, what, _WRITER, "paper.")


def _check_parts(content: dict, what: str) -> None:
    """Check what not every evaluation has."""
    intervals = content["intervals"]
    if intervals["unit"] == "groups":
        check_fields(intervals, {"over_images": _BOUNDS}, what, _WRITER, "intervals.")
    _check_all(content, "origins", TEXT, what)
    for name, of_class in content["per_class"].items():
        _check_all(of_class, "intervals", interval_of(FRACTION), what, f"per_class.{name}.")
    _check_all(content, "subgroups", OBJECT, what)
    for by, subgroups in content["subgroups"].items():
        for name, subgroup in subgroups.items():
            units = {"groups": COUNT} if intervals["unit"] == "groups" else {}
            check_fields({name: subgroup}, {name: _FIELDS_OF_SUBGROUP | units}, what, _WRITER, f"subgroups.{by}.")


def _check_all(content: dict, name: str, kind: Kind, what: str, within: str = "") -> None:
    """Check that a field is an object, all of whose fields are of a kind."""
    inside = content[name] if isinstance(content[name], dict) else {}
    check_fields(content, {name: dict.fromkeys(inside, kind)}, what, _WRITER, within)


def _fill_later(content: dict) -> None:
    """Put in None where a run of an earlier version lacks a metric, and nothing where it lacks what is told of it."""

    def fill(inside: Any, names: tuple[str, ...]) -> None:
        if isinstance(inside, dict):
            for name in names:
                inside.setdefault(name)

    for inside in (content, content.get("intervals"), content.get("spread")):
        fill(inside, _LATER)
    per_class = content.get("per_class")
    for of_class in per_class.values() if isinstance(per_class, dict) else []:
        fill(of_class, _LATER_OF_CLASS)
        if isinstance(of_class, dict):
            of_class.setdefault("intervals", {})
    content.setdefault("in_train", {})
    if content["kind"] == "evaluation":
        for name in ("origins", "subgroups"):
            content.setdefault(name, {})
        if isinstance(content.get("intervals"), dict):
            content["intervals"].setdefault("unit", "images")
