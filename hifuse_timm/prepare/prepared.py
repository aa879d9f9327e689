"""What an earlier run left in a folder."""

import csv
import json
from pathlib import Path

__all__ = ["list_prepared"]


def list_prepared(name: str, folder: Path) -> set[str]:
    """List the files that a dataset of this name was prepared as, by its tables.

    Args:
        name: Name of the dataset, as in dataset.json.
        folder: The dataset, or the folder of its folds.

    Returns:
        Paths relative to the folder, none if it is not there or is of another dataset.
    """
    files = set()
    for fold in (folder, *folder.glob("fold*")):
        try:
            dataset = json.loads((fold / "dataset.json").read_text(encoding="utf-8"))
            with open(fold / "splits.csv", encoding="utf-8", newline="") as f:
                listed = [row["file"] for row in csv.DictReader(f)]
            if dataset["name"] != name:
                continue
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            continue
        inside = "" if fold == folder else f"{fold.name}/"
        files.update(f"{inside}{file}" for file in (*listed, "splits.csv", "dataset.json"))
    return files
