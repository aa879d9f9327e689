"""An evaluation, or an average of several, as tables for the terminal."""

from textwrap import fill

from ..errors import require
from ..runs import CLASS_METRICS, METRICS, SPECIFICITIES
from ..text import abbreviate, printable

__all__ = ["format_result"]

_NAMES = dict(
    accuracy="accuracy",
    balanced_accuracy="balanced accuracy",
    f1="F1",
    precision="precision",
    recall="recall",
    specificity="specificity",
    auroc="AUROC",
    ece="calibration error",
    average_precision="average precision",
    kappa="Cohen's kappa",
    mcc="Matthews correlation",
    brier="Brier score",
    **{name: f"sensitivity at {specificity:.0%} specificity" for name, specificity in SPECIFICITIES.items()},
)


def format_result(result: dict) -> str:
    """What an evaluation or an average of several found, as tables for the terminal, in percent as in the paper."""
    counts, paper = result["counts"], result["paper"] or {}
    averaged = result["kind"] == "average"
    what = f"mean of {counts['runs']} runs, " if averaged else ""
    header = ["%", "mean", "std", "min", "max"] if averaged else ["%", "value", *_name_intervals(result["intervals"])]
    rows = []
    for name in METRICS:
        row = [_NAMES[name], _percent(result[name])]
        if averaged:
            row += [_percent((result["spread"][name] or {}).get(key)) for key in ("std", "min", "max")]
        else:
            row += _format_intervals(result["intervals"], name)
        if name in paper and result[name] is not None:
            row += [_percent(paper[name]), f"{100 * (result[name] - paper[name]):+.2f}"]
        elif paper:
            row += ["", ""]
        rows.append(row)
    if paper:
        header += [f"paper's {paper['method']}", "difference"]
    class_rows = [
        [abbreviate(name, 40), f"{of_class['images']:,}", f"{of_class['predicted']:,}"]
        + [_percent(of_class[metric]) for metric in CLASS_METRICS]
        for name, of_class in result["per_class"].items()
    ]
    return "\n".join(
        [
            *(_format_selection(result) if "selection" in result else []),
            printable(f"{result['model']} on {result['title']}, {result['split']}: {what}")
            + f"{counts['images']:,} images, {counts['classes']} classes",
            *(printable(f"{what}: {origin}") for what, origin in result.get("origins", {}).items()),
            "",
            _table(header, rows),
            "",
            _table(
                ["class, %", "images", "predicted", *(fill(_NAMES[metric], 15) for metric in CLASS_METRICS)], class_rows
            ),
        ]
    )


def _name_intervals(intervals: dict) -> list[str]:
    """The columns of `_format_intervals`."""
    if intervals.get("unit") != "groups":
        return ["95% interval"]
    return [f"95% interval\nover {intervals['groups']:,} groups", "times as wide\nas over images"]


def _format_intervals(intervals: dict, name: str) -> list[str]:
    """A metric's interval, and where it is over groups how much wider that makes it."""
    interval = intervals[name]
    if intervals.get("unit") != "groups":
        return [_percent_interval(interval)]
    over_images = intervals["over_images"][name]
    if interval is None or over_images is None or over_images[0] == over_images[1]:
        return [_percent_interval(interval), ""]
    return [_percent_interval(interval), f"{(interval[1] - interval[0]) / (over_images[1] - over_images[0]):.2f}"]


def _format_selection(result: dict) -> list[str]:
    """The checkpoints of which the best was picked, in lines."""
    metric, checkpoints = result["selection"]["metric"], result["selection"]["checkpoints"]
    rows = [
        [abbreviate(found["checkpoint"], 80), _percent(found["value"]), _percent_interval(found["interval"])]
        for found in checkpoints
    ]
    best = printable(f"{_NAMES[metric]} on {result['split']}: {result['conditions']['checkpoint']}")
    return [_table(["checkpoint", f"{_NAMES[metric]}, %", "95% interval"], rows), "", f"best by {best}", ""]


def _table(header: list[str], rows: list[list[str]]) -> str:
    tabulate = require("tabulate", "medical").tabulate
    return tabulate(rows, header, colalign=["left"] + ["right"] * (len(header) - 1), disable_numparse=True)


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"


def _percent_interval(interval: list[float] | None) -> str:
    return "n/a" if interval is None else " - ".join(map(_percent, interval))
