"""Tables for the terminal and for Markdown pages."""

from tabulate import tabulate

from .measure.timing import Spread


def format_table(header: list[str], rows: list[list[str]], markdown: bool = False, num_left: int = 1) -> str:
    """A table of texts, the first num_left columns to the left and all others to the right."""
    align = ["left"] * num_left + ["right"] * (len(header) - num_left)
    return tabulate(
        rows,
        header,
        tablefmt="github" if markdown else "simple",
        colalign=align if rows else None,
        disable_numparse=True,
    )


def format_spread(spread: Spread | None, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """Median, and quartiles in brackets; nothing for None."""
    if spread is None:
        return ""
    low, median, high = (f"{value * scale:.{digits}f}{unit}" for value in (spread.low, spread.median, spread.high))
    return f"{median} ({low} to {high})"
