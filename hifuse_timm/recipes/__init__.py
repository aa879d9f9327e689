"""Training recipes for the datasets of the paper: YAML files for the `--config` of timm's train.py."""

from pathlib import Path

from ..datasets import DATASETS

__all__ = ["recipe_path"]


def recipe_path(tag: str) -> Path:
    """Path of the recipe for a dataset.

    Args:
        tag: Tag of the dataset, a key of `DATASETS`.

    Raises:
        ValueError: If there is no dataset of this tag.
    """
    if tag not in DATASETS:
        raise ValueError(f"recipe {tag!r} does not exist: expected one of {', '.join(DATASETS)}")
    return Path(__file__).with_name(f"{tag}.yaml")
