"""How many images of a split train has, too: by their content, their group, or whom they show."""

from .columns import Columns

__all__ = ["count_shared"]


def count_shared(columns: Columns, description: dict, split: str, group_column: str | None) -> dict[str, int]:
    """Count the images of a split that share something with an image of train, by what `prepare` wrote on them.

    Args:
        columns: What `splits.csv` says of the images of the split.
        description: What the dataset's dataset.json says.
        split: The split.
        group_column: Column of `splits.csv` that names the groups; None for `group`, as `prepare` writes it.

    Returns:
        The number of images that share their `content`, their `group` where groups have several images, and, as
        `prepare` counted it, their patient or lesion. Nothing where nothing is known of train, or it is the split.
    """
    splits = columns.splits
    rows = [splits[name] for name in columns.files if name in splits]
    train = [row for row in splits.values() if row.get("split") == "train"]
    if split == "train" or not train or len(rows) < len(columns.files):
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
