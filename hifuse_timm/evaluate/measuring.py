"""Metrics of predictions with their intervals, over images or over groups of them."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import torch

from ..bootstrap import bootstrap_intervals, count_groups
from ..datasets import read_splits
from ..errors import shorten
from ..metrics import compute_metrics
from ..runs import CLASS_METRICS

__all__ = ["RESAMPLED", "find_groups", "measure"]

RESAMPLED = ("groups", "images")  # what the bootstrap may draw


def find_groups(data_dir: Path, files: Sequence[str], column: str | None) -> list[str] | None:
    """The group of each image, by `splits.csv`.

    Args:
        data_dir: The dataset.
        files: The images, as paths in it.
        column: The column that names the groups; None for `group`, as `prepare` writes it.

    Returns:
        The groups; None where no column was asked for, and there is none, or no two images are of one group.

    Raises:
        ValueError: If there is no such column, or an image has no group.
        OSError: If the file cannot be read.
    """
    path, splits = data_dir / "splits.csv", read_splits(data_dir)
    columns = next(iter(splits.values()), {})
    if column is None and "group" not in columns:
        return None
    if (column or "group") not in columns:
        raise ValueError(f"group_column {column!r} is not in {path}, which has {shorten(columns) or 'no rows'}")
    # names that are not UTF-8 stand there escaped
    names = [PurePath(file).as_posix().encode(errors="backslashreplace").decode() for file in files]
    groups = [splits.get(name, {}).get(column or "group", "") for name in names]
    if without := [name for name, group in zip(names, groups, strict=True) if not group]:
        raise ValueError(
            f"{path} names no {column or 'group'} for {len(without)} of the images, {shorten(without, 4)}: expected "
            "one for each; resample images (--resample images) takes them as independent"
        )
    return groups if column is not None or len(set(groups)) < len(groups) else None


def measure(
    classes: Sequence[str],
    probs: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> dict:
    """The metrics of predictions at the top, their intervals, and those of each class.

    Args:
        classes: Names of the classes.
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        groups: Name of each image's group, which the bootstrap draws; None to draw images.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    metrics, by_class = compute_metrics(probs, targets)
    options = dict(resamples=resamples, seed=seed)
    intervals, class_intervals = bootstrap_intervals(probs, targets, groups, **options)
    confusion = multiclass_confusion_matrix(probs.argmax(1), targets, probs.shape[1])
    unit = "images" if groups is None else "groups"
    drawn = {} if groups is None else _compare_with_images(probs, targets, groups, options)
    return dict(
        **metrics,
        counts=dict(images=len(targets), classes=len(confusion)),
        intervals=dict(
            level=0.95, method=f"percentile bootstrap over {unit}", unit=unit, **options, **drawn, **intervals
        ),
        per_class={
            name: dict(
                images=confusion[k].sum().item(),
                predicted=confusion[:, k].sum().item(),
                **{metric: by_class[metric][k] for metric in CLASS_METRICS},
                intervals={metric: class_intervals[metric][k] for metric in CLASS_METRICS},
            )
            for k, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
    )


def _compare_with_images(probs: torch.Tensor, targets: torch.Tensor, groups: Sequence[str], options: dict) -> dict:
    """How many groups there are, and the intervals over images, which are narrower where a group's are alike."""
    return dict(groups=count_groups(groups), over_images=bootstrap_intervals(probs, targets, **options)[0])
