"""An evaluation, or an average of several, as tables for the terminal."""

from textwrap import fill

from ..operating_points import format_calibration
from ..runs import CLASS_METRICS, METRICS, SUBGROUP_METRICS
from ..tables import METRIC_NAMES, format_interval, format_percent, format_table, format_widening
from ..text import abbreviate, printable

__all__ = ["format_result"]


def format_result(result: dict) -> str:
    """What an evaluation or an average of several found, as tables for the terminal, in percent as in the paper."""
    counts, paper = result["counts"], result["paper"] or {}
    averaged = result["kind"] == "average"
    what = f"mean of {counts['runs']} runs, " if averaged else ""
    measured = result.get("pooled") if averaged else result  # what has intervals
    header = ["%", "mean", "std", "min", "max"] if averaged else ["%"]
    if measured is not None:
        header += ["pooled" if averaged else "value", *_name_intervals(measured["intervals"])]
    rows = []
    for name in METRICS:
        row = [METRIC_NAMES[name]]
        if averaged:
            spread = result["spread"][name] or {}
            row += [format_percent(result[name]), *(format_percent(spread.get(key)) for key in ("std", "min", "max"))]
        if measured is not None:
            row += [format_percent(measured[name]), *_format_intervals(measured["intervals"], name)]
        if name in paper and result[name] is not None:
            row += [format_percent(paper[name]), f"{100 * (result[name] - paper[name]):+.2f}"]
        elif paper:
            row += ["", ""]
        rows.append(row)
    if paper:
        header += [f"paper's {paper['method']}", "difference"]
    class_rows = [
        [abbreviate(name, 40), f"{of_class['images']:,}", f"{of_class['predicted']:,}"]
        + [format_percent(of_class[metric]) for metric in CLASS_METRICS]
        for name, of_class in result["per_class"].items()
    ]
    return "\n".join(
        [
            *(_format_selection(result) if "selection" in result else []),
            printable(f"{result['model']} on {result['title']}, {result['split']}: {what}")
            + f"{counts['images']:,} images, {counts['classes']} classes",
            *(printable(f"{what}: {origin}") for what, origin in result.get("origins", {}).items()),
            "",
            format_table(header, rows),
            "",
            format_table(
                ["class, %", "images", "predicted", *(fill(METRIC_NAMES[metric], 12) for metric in CLASS_METRICS)],
                class_rows,
            ),
            *(
                line
                for by, of_column in result.get("subgroups", {}).items()
                for line in ("", _format_by(by, of_column))
            ),
            *(["", format_calibration(result["calibration"])] if "calibration" in result else []),
        ]
    )


def _format_by(by: str, subgroups: dict[str, dict]) -> str:
    """A table of the subgroups of a column."""
    units = [unit for unit in ("images", "groups") if unit in next(iter(subgroups.values()))]
    rows = [
        [abbreviate(name, 40), *(f"{subgroup[unit]:,}" for unit in units)]
        + [_format_with_interval(subgroup[metric], subgroup["intervals"][metric]) for metric in SUBGROUP_METRICS]
        for name, subgroup in subgroups.items()
    ]
    header = [f"{abbreviate(by, 40)}, %", *units, *(f"{METRIC_NAMES[m]}\n(95% interval)" for m in SUBGROUP_METRICS)]
    return format_table(header, rows)


def _format_with_interval(value: float | None, interval: list[float] | None) -> str:
    return format_percent(value) if interval is None else f"{format_percent(value)} ({format_interval(interval)})"


def _name_intervals(intervals: dict) -> list[str]:
    """The columns of `_format_intervals`."""
    if intervals.get("unit") != "groups":
        return ["95% interval"]
    return [f"95% interval\nover {intervals['groups']:,} groups", "times as wide\nas over images"]


def _format_intervals(intervals: dict, name: str) -> list[str]:
    """A metric's interval, and where it is over groups how much wider that makes it."""
    interval = intervals[name]
    if intervals.get("unit") != "groups":
        return [format_interval(interval)]
    return [format_interval(interval), format_widening(interval, intervals["over_images"][name])]


def _format_selection(result: dict) -> list[str]:
    """The checkpoints of which the best was picked, in lines."""
    metric, checkpoints = result["selection"]["metric"], result["selection"]["checkpoints"]
    rows = [
        [abbreviate(found["checkpoint"], 80), format_percent(found["value"]), format_interval(found["interval"])]
        for found in checkpoints
    ]
    best = printable(f"{METRIC_NAMES[metric]} on {result['split']}: {result['conditions']['checkpoint']}")
    return [format_table(["checkpoint", f"{METRIC_NAMES[metric]}, %", "95% interval"], rows), "", f"best by {best}", ""]
