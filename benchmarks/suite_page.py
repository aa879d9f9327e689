"""The page of `python -m benchmarks suite`: all networks in one table, whether the rig is sane, what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from . import report, throughput
from .measure.environment import format_conditions
from .measure.result import Result
from .measure.timing import Spread, ratios
from .suite_cells import Cell, Suite, load_counts
from .tables import format_table
from .timm_results import write_csv

# Images a second of Swin-B over those of ConvNeXt-B at 224 pixels, lowest and highest of what timm publishes in its
# results/benchmark-infer-{...}.csv. Eager: amp-nchw-pt210-cu121-rtx3090 0.68, amp-nchw-pt240-cu124-rtx3090 0.67,
# amp-nchw-pt240-cu124-rtx4090 0.58, amp-nchw-pt291-cu128-4090 0.59, amp-nchw-pt291-cu130-5090 0.72. Compiled:
# amp-nchw-pt240-cu124-rtx4090-dynamo 0.82, amp-nchw-pt291-cu128-4090-dynamo 0.82, amp-nchw-pt291-cu130-5090-dynamo
# 0.83, amp-nchw-pt291-cu130-pro6000maxq-dynamo 0.81, bf16-nchw-pt291-cu130-pro6000maxq-dynamo 0.79.
_SWIN, _CONVNEXT = "swin_base_patch4_window7_224", "convnext_base"
_PUBLISHED = {False: (0.58, 0.72), True: (0.79, 0.83)}  # eager, compiled
_CHECKED = {False: ("amp",), True: ("amp", "bfloat16")}
_TOLERANCE = 0.1  # a share of the published ratios, beyond which a run is far from them


def merge(loaded: Iterable[dict]) -> list[list[Result]]:
    """What throughput has measured: for each way of running networks, the results that have it."""
    ways: dict[str, list[Result]] = {}
    for data in loaded:
        if data["kind"] == "throughput":
            result = Result.from_json(data)
            way = replace(result.settings, models=[], baseline="")
            ways.setdefault(str(way), []).append(result)
    return list(ways.values())


def format_overview(ways: list[list[Result]], markdown: bool = False) -> str:
    """A row for each way of running networks, a column for each network."""
    models = list(dict.fromkeys(row.model for results in ways for result in results for row in result.rows))
    header = ["Images/s, and over the baseline's", "Batch size", *models]
    rows = [_overview_row(results, models) for results in ways]
    return format_table(header, rows, markdown)


def _overview_row(results: list[Result], models: list[str]) -> list[str]:
    cells, sizes = {}, set()
    for result in results:
        for row in result.rows:
            rate, ratio = Spread.of(row.samples.rates), result.ratio(row)
            if rate is not None:
                over = "" if ratio is None else f" ({ratio.median:.2f})"
                cells.setdefault(row.model, f"{rate.median:.1f}{over}")
                sizes.add(row.batch_size)
            elif row.error is not None:
                cells.setdefault(row.model, "failed")
    size = " to ".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    return [throughput.describe(results[0].settings), size, *(cells.get(model, "") for model in models)]


def check_rig(ways: list[list[Result]]) -> list[str]:
    """Whether Swin-B over ConvNeXt-B on this GPU is near what timm published; nothing where it was not measured."""
    lines = []
    for result in [result for results in ways for result in results]:
        settings = result.settings
        rates = {row.model: row.samples.rates for row in result.rows}
        measured = rates.get(_SWIN) and rates.get(_CONVNEXT)
        alike = settings.mode == "inference" and settings.image_size == 224 and settings.batch_sizes == ["max"]
        if not (measured and alike and settings.precision in _CHECKED[settings.compile]):
            continue
        ratio = Spread.of(ratios(rates[_SWIN], rates[_CONVNEXT])).median
        low, high = _PUBLISHED[settings.compile]
        far = not low * (1 - _TOLERANCE) <= ratio <= high * (1 + _TOLERANCE)
        lines.append(
            f"Swin-B over ConvNeXt-B, {throughput.describe(settings)}: {ratio:.2f}. In timm's published runs on "
            f"RTX cards it is {low:.2f} to {high:.2f}, {'compiled' if settings.compile else 'eager'}. "
            + (
                "That is FAR from it: look at the clocks, the power and what else runs before you believe this page."
                if far
                else "That is near it."
            )
        )
    return lines


def list_missing(suite: Suite, cells: list[Cell]) -> list[str]:
    """What is not measured, or not to the end, and why."""
    lines = []
    for cell in cells:
        progress = suite.progress.get(cell.name)
        if progress is None:
            lines.append(f"{cell.name}: not begun")
        elif progress.state == "begun":
            lines.append(f"{cell.name}: interrupted after {progress.seconds:.0f} s")
        elif progress.state == "failed":
            lines.append(f"{cell.name}: its process failed after {progress.seconds:.0f} s: {progress.error}")
    return lines


def write_results(suite: Suite, cells: list[Cell], left_out: list[str], folder: Path) -> str:
    """Write the page, its pictures, and the CSV files.

    Returns:
        What stands first on the page.
    """
    loaded = {cell.name: data for cell in cells if (data := cell.load(folder)) is not None}
    ways = merge(loaded.values())
    counts = load_counts(folder, suite.image_size)
    tables = [write_csv(folder, results, counts) for results in ways]
    missing = list_missing(suite, cells)

    def first_section(markdown: bool) -> str:
        text = [format_overview(ways, markdown)] if ways else ["No network is measured yet."]
        text += check_rig(ways)
        for title, lines in (("Not measured, or not to the end:", missing), ("Left out:", left_out)):
            text += [f"{title}\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []
        return "\n\n".join(text + [format_conditions(conditions) for conditions in suite.conditions])

    names = ", ".join(f"[{path.name}]({path.name})" for path in tables)
    page = ["## All networks", first_section(markdown=True)]
    page += [f"In timm's columns: {names}."] if names else []
    report.write_page(loaded, folder, page)
    return first_section(markdown=False)
