"""Tables for the terminal and for Markdown pages, and results as JSON files that are never half written."""

import json
from pathlib import Path

from tabulate import tabulate

from hifuse_timm.files import replacing_file


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


def write_json(path: str | Path, result: dict) -> None:
    """Write a result so that its file is whole at any time."""
    with replacing_file(path) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n")
