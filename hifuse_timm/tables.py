"""Metrics in tables: what they are called, their values in percent, and tables for the terminal and in Markdown."""

from collections.abc import Iterable, Sequence

from .errors import require
from .runs import SPECIFICITIES
from .text import escape_markdown

__all__ = ["METRIC_NAMES", "format_interval", "format_markdown", "format_percent", "format_table", "format_widening"]

METRIC_NAMES = dict(
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


def format_percent(value: float | None) -> str:
    """A value in percent."""
    return "n/a" if value is None else f"{100 * value:.2f}"


def format_interval(interval: list[float] | None) -> str:
    """The bounds of an interval in percent."""
    return "n/a" if interval is None else " - ".join(map(format_percent, interval))


def format_widening(interval: list[float] | None, over_images: list[float] | None) -> str:
    """How many times as wide as over images an interval is over groups; nothing where that is unknown."""
    if interval is None or over_images is None or over_images[0] == over_images[1]:
        return ""
    return f"{(interval[1] - interval[0]) / (over_images[1] - over_images[0]):.2f}"


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as a table for the terminal, what stands behind the first column to the right."""
    tabulate = require("tabulate", "medical").tabulate
    return tabulate(rows, header, colalign=["left"] + ["right"] * (len(header) - 1), disable_numparse=True)


def format_markdown(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Rows as a table in Markdown, which shows every cell as it is; nothing where there are none."""
    rows = list(rows)
    lines = [[name.replace("\n", " ") for name in header], ["---"] * len(header), *rows] if rows else []
    return "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)
