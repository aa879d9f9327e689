"""The mean and the spread of several evaluations of one architecture."""

import statistics
from pathlib import Path

from ..errors import shorten
from ..runs import CLASS_METRICS, METRICS, read_run
from ..text import abbreviate

__all__ = ["average"]


def average(runs: list[str | Path]) -> dict:
    """Average evaluations of one architecture on one dataset, as of the two folds of Kvasir (Section 4.8).

    Args:
        runs: Files that `evaluate --json` wrote.

    Returns:
        A result as that of an evaluation, with the means of the metrics at the top, `spread` (standard deviation of the
        sample, least and greatest) in the place of the intervals, and the metrics of each run.

    Raises:
        ValueError: If there are fewer than two runs, one is given twice or is no evaluation, or they differ in
            architecture, dataset or classes.
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
        if content in contents[:i]:
            raise ValueError(f"run {run} is the same as {runs[contents.index(content)]}: give each run once")

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
        runs=[
            dict(file=str(run), **{name: content[name] for name in METRICS}, conditions=content["conditions"])
            for run, content in zip(runs, contents, strict=True)
        ],
    )
