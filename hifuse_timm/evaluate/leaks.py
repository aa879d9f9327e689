"""How many images of a split train has, too: by their content, their group, or whom they show."""

from collections.abc import Sequence
from pathlib import Path

from ..datasets import name_in_splits, read_splits

__all__ = ["count_shared"]


def count_shared(
    data_dir: Path, description: dict, split: str, files: Sequence[str], group_column: str | None
) -> dict[str, int]:
    """Count the images of a split that share something with an image of train, by what `prepare` wrote on them.

    Args:
        data_dir: The dataset.
        description: What its dataset.json says.
        split: The split.
        files: Its images, as paths in the dataset.
        group_column: Column of `splits.csv` that names the groups; None for `group`, as `prepare` writes it.

    Returns:
        The number of images that share their `content`, their `group` where groups have several images, and, as
        `prepare` counted it, their patient or lesion. Nothing where nothing is known of train, or it is the split.

    Raises:
        ValueError: If `splits.csv` is not as `prepare` writes it.
        OSError: If it cannot be read.
    """
    splits = read_splits(data_dir)
    rows = [splits[name] for name in map(name_in_splits, files) if name in splits]
    train = [row for row in splits.values() if row.get("split") == "train"]
    if split == "train" or not train or len(rows) < len(files):
        return {}
    shared = {}
    for what, column in (("content", "checksum"), ("group", group_column or "group")):
        values = [row.get(column) for row in splits.values()]
        if all(values) and (what == "content" or len(set(values)) < len(values)):
            of_train = {row[column] for row in train}
            shared[what] = sum(row[column] in of_train for row in rows)
    counted = description.get("shared_with_train", {})
    if split in counted:
        shared[counted["unit"]] = counted[split]
    return shared
