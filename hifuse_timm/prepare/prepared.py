"""What an earlier run left in a folder."""

import csv
from collections.abc import Collection
from pathlib import Path

from ..datasets import read_description

__all__ = ["list_prepared"]


def list_prepared(names: Collection[str], folder: Path) -> set[str]:
    """List the files that a dataset of one of these names was prepared as, by its tables.

    Args:
        names: Names of datasets, as in dataset.json.
        folder: The dataset, or the folder of its folds.

    Returns:
        Paths relative to the folder, none if it is not there or is of another dataset.
    """
    files = set()
    for fold in (folder, *folder.glob("fold*")):
        try:
            dataset = read_description(fold)
            with open(fold / "splits.csv", encoding="utf-8", newline="") as f:
                listed = [row["file"] for row in csv.DictReader(f)]
            if dataset["name"] not in names:
                continue
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            continue
        inside = "" if fold == folder else f"{fold.name}/"
        files.update(f"{inside}{file}" for file in (*listed, "splits.csv", "dataset.json"))
    return files
