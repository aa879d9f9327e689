"""Evaluations that a page is drawn from, as objects and read from the files that `evaluate` writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..calibration import check_rules, log_probabilities
from ..errors import shorten
from ..fields import OBJECT, check_fields
from ..files import sha256
from ..predictions import Predictions, read_predictions
from ..runs import read_run
from ..text import abbreviate
from .gallery import Example, find_mistakes, find_uncertain

__all__ = ["Run", "count_confusions", "read_runs"]


@dataclass(frozen=True)
class Run:
    """An evaluation, as the page shows it.

    Attributes:
        name: What the page calls it.
        result: What `evaluate --json` wrote.
        predictions: The predictions that it measured, with the true classes.
        uncalibrated: Probabilities before the calibration, (N, K); None where there was none.
        mistakes: The images that were most confidently taken for a wrong class.
        uncertain: The images of which the network was least certain.
    """

    name: str
    result: dict
    predictions: Predictions
    uncalibrated: torch.Tensor | None = None
    mistakes: list[Example] = field(default_factory=list)
    uncertain: list[Example] = field(default_factory=list)


def read_runs(results: Sequence[str | Path], predictions: Sequence[str | Path]) -> list[Run]:
    """Read what `evaluate --json` and `evaluate --predictions` wrote.

    Args:
        results: Files of results.
        predictions: Files of predictions, one for each result, in the same order.

    Raises:
        ValueError: If a file is none of these, a result was not measured on its predictions, or the runs are of
            different classes.
        OSError: If a file cannot be read.
    """
    if len(results) != len(predictions):
        raise ValueError(f"predictions: {len(predictions)} given for {len(results)} runs, expected one for each run")
    names = _name_runs([Path(result) for result in results])
    runs = []
    for name, result, table in zip(names, results, predictions, strict=True):
        run = Run(name, _read_result(Path(result)), read_predictions(table))
        _check_belongs(run, result, table)
        runs.append(_complete(run))
    for run, result in zip(runs, results, strict=True):
        if set(run.predictions.classes) != set(runs[0].predictions.classes):
            raise ValueError(
                f"run {result} has the classes {shorten(run.predictions.classes)}, {results[0]} has "
                f"{shorten(runs[0].predictions.classes)}: put runs of the same classes on one page"
            )
    return runs


def count_confusions(predictions: Predictions) -> list[list[int]]:
    """In each row the images of a class, by the class that they are taken for, (K, K)."""
    num_classes = len(predictions.classes)
    pairs = predictions.targets * num_classes + predictions.probs.argmax(1)
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).tolist()


def _name_runs(paths: list[Path]) -> list[str]:
    """What to call the runs: the stems of their files where these differ, else the paths."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _read_result(path: Path) -> dict:
    result, what = read_run(path), f"run {path}"
    if result.get("calibration") is not None:
        check_fields(result, {"calibration": OBJECT}, what, "evaluate writes")
        check_rules(result["calibration"], what, "calibration.", "evaluate writes")
    return result


def _complete(run: Run) -> Run:
    """Add what follows from the predictions; probabilities before a calibration by its temperature."""
    found, probs = run.predictions, None
    if calibration := run.result.get("calibration"):
        probs = (log_probabilities(found.probs) * calibration["temperature"]).softmax(1)
    return replace(run, uncalibrated=probs, mistakes=find_mistakes(found), uncertain=find_uncertain(found))


def _check_belongs(run: Run, result: str | Path, table: str | Path) -> None:
    """Check that a result was measured on these predictions."""
    predictions, per_class = run.predictions, run.result["per_class"]
    if run.result.get("predictions") not in (None, sha256(Path(table))):
        raise ValueError(
            f"predictions {table} are not those of run {result}, or were changed since: give the predictions of the run"
        )
    if predictions.targets is None:
        raise ValueError(f"predictions {table} have no column class, the true ones: expected evaluate --predictions")
    if set(predictions.classes) != set(per_class):
        raise ValueError(
            f"predictions {table} have the classes {shorten(predictions.classes)}, run {result} has "
            f"{shorten(per_class)}: give the predictions of the run"
        )
    confusion = torch.tensor(count_confusions(predictions))
    found = zip(predictions.classes, confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    for name, images, predicted in found:
        expected = (per_class[name]["images"], per_class[name]["predicted"])
        if (images, predicted) != expected:
            raise ValueError(
                f"predictions {table} have {images} images of {abbreviate(name, 80)}, and {predicted} taken for it; "
                f"run {result} has {expected[0]} and {expected[1]}: give the predictions of the run"
            )
    if run.result["intervals"]["unit"] == "groups" and predictions.groups is None:
        raise ValueError(f"predictions {table} have no column group, and run {result} resamples groups")
