"""The mean and the spread of several evaluations of one architecture."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ..bootstrap import check_resampling
from ..errors import shorten
from ..predictions import Predictions, read_predictions, reorder
from ..runs import CLASS_METRICS, METRICS, read_run
from ..text import abbreviate
from .measuring import measure

__all__ = ["average"]

_LARGEST_GAP = 1e-3  # between a run's accuracy and that of its predictions as they are rounded


def average(
    runs: Sequence[str | Path], predictions: Sequence[str | Path] = (), *, resamples: int = 2000, seed: int = 0
) -> dict:
    """Average evaluations of one architecture on one dataset, as of the two folds of Kvasir (Section 4.8).

    With predictions, all of them are measured together, too, with intervals over all groups, as patients, or images.

    Args:
        runs: Files that `evaluate --json` wrote.
        predictions: Files that `evaluate --predictions` wrote of the same runs, in their order; none not to pool them.
        resamples: Resamples of the bootstrap of the pool.
        seed: Seed of the bootstrap.

    Returns:
        A result as that of an evaluation, with the means of the metrics at the top, `spread` (standard deviation of the
        sample, least and greatest) in the place of the intervals, the sums of counts and of `in_train`, the metrics of
        each run, and `pooled`, what an evaluation has of all predictions together.

    Raises:
        ValueError: If there are fewer than two runs, one is given twice or is no evaluation, they differ in
            architecture, dataset or classes, or the predictions are not those of the runs or have an image twice.
        OSError: If a file cannot be read.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: {len(runs)} given, expected two or more")
    contents = [read_run(Path(run)) for run in runs]
    first = contents[0]
    for i, (run, content) in enumerate(zip(runs, contents, strict=True)):
        for key in ("architecture", "dataset"):
            if content[key] != first[key]:
                raise ValueError(
                    f"run {run} has the {key} {abbreviate(content[key], 80)}, {runs[0]} has "
                    f"{abbreviate(first[key], 80)}: average like runs"
                )
        if list(content["per_class"]) != list(first["per_class"]):
            raise ValueError(
                f"run {run} has the classes {shorten(content['per_class'])}, {runs[0]} has "
                f"{shorten(first['per_class'])}: average like runs"
            )
        if ("calibration" in content) != ("calibration" in first):
            calibrated, other = (run, runs[0]) if "calibration" in content else (runs[0], run)
            raise ValueError(f"run {calibrated} is of calibrated probabilities, {other} is not: average like runs")
        if content in contents[:i]:
            raise ValueError(f"run {run} is the same as {runs[contents.index(content)]}: give each run once")

    pooled = _pool(runs, contents, predictions, resamples, seed) if predictions else None

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else round(statistics.fmean(values), 6)

    def spread(values: list[float]) -> dict[str, float]:
        return dict(std=round(statistics.stdev(values), 6), min=min(values), max=max(values))

    values = {name: [content[name] for content in contents] for name in METRICS}
    classes = {name: [content["per_class"][name] for content in contents] for name in first["per_class"]}
    return dict(
        **{name: mean(values[name]) for name in METRICS},
        kind="average",
        model=first["model"],
        architecture=first["architecture"],
        dataset=first["dataset"],
        title=first["title"],
        split=first["split"],
        counts=dict(runs=len(runs), images=sum(c["counts"]["images"] for c in contents), classes=len(classes)),
        in_train={
            what: sum(content["in_train"][what] for content in contents)
            for what in first["in_train"]
            if all(what in content["in_train"] for content in contents)
        },
        spread={name: None if None in values[name] else spread(values[name]) for name in METRICS},
        per_class={
            name: dict(
                images=sum(run["images"] for run in of_class),
                predicted=sum(run["predicted"] for run in of_class),
                **{metric: mean([run[metric] for run in of_class]) for metric in CLASS_METRICS},
            )
            for name, of_class in classes.items()
        },
        paper=first["paper"],
        **({} if pooled is None else dict(pooled=pooled)),
        runs=[
            dict(file=str(run), **{name: content[name] for name in METRICS}, conditions=content["conditions"])
            for run, content in zip(runs, contents, strict=True)
        ],
    )


def _pool(
    runs: Sequence[str | Path],
    contents: Sequence[dict],
    predictions: Sequence[str | Path],
    resamples: int,
    seed: int,
) -> dict:
    """What an evaluation has of the predictions of all runs together."""
    if len(predictions) != len(runs):
        raise ValueError(f"predictions: {len(predictions)} given for {len(runs)} runs, expected one for each")
    check_resampling(resamples)
    classes = list(contents[0]["per_class"])
    tables = [
        _read_predictions_of(run, content, path, classes)
        for run, content, path in zip(runs, contents, predictions, strict=True)
    ]
    origins = {}
    for table, path in zip(tables, predictions, strict=True):
        if twice := [file for file in table.files if file in origins]:
            raise ValueError(
                f"predictions {path} have {len(twice)} images that {origins[twice[0]]} has, {shorten(twice, 4)}: only "
                "runs on different images, as folds, can be pooled"
            )
        origins |= dict.fromkeys(table.files, path)
    groups = None
    if any(table.groups for table in tables):  # where a fold has none, each of its images is one
        groups = [group for table in tables for group in table.groups or table.files]
    probs, targets = (torch.cat(parts) for parts in zip(*((t.probs, t.targets) for t in tables), strict=True))
    return measure(classes, probs, targets, groups, resamples, seed)


def _read_predictions_of(run: str | Path, content: dict, path: str | Path, classes: list[str]) -> Predictions:
    """Predictions with the classes in this order, if they are those of a run."""
    table = read_predictions(path)
    counts = {name: of_class["images"] for name, of_class in content["per_class"].items()}
    found = None
    if set(table.classes) == set(classes) and table.targets is not None:
        table = reorder(table, range(len(table.files)), classes)
        found = dict(zip(classes, table.targets.bincount(minlength=len(classes)).tolist(), strict=True))
        accuracy = (table.probs.argmax(1) == table.targets).double().mean().item()
    if found != counts or abs(accuracy - content["accuracy"]) > _LARGEST_GAP:
        raise ValueError(
            f"predictions {path} are not those of run {run}: expected the same true classes, counts and accuracy"
        )
    return table
