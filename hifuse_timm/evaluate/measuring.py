"""Metrics of predictions with their intervals, over images or over groups of them."""

from collections.abc import Sequence

import torch

from ..bootstrap import bootstrap_intervals, count_groups
from ..metrics import compute_metrics
from ..runs import CLASS_METRICS, SUBGROUP_METRICS

__all__ = ["measure", "measure_subgroups"]

_FEWEST_IMAGES = 10  # of a subgroup that is measured


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


def measure_subgroups(
    subgroups: dict[str, list[int]],
    probs: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> dict[str, dict]:
    """How many images each subgroup has, `SUBGROUP_METRICS` of it and their intervals.

    All are None for fewer than 10 images. F1, a mean over all classes, is None where one of them does not occur.

    Args:
        subgroups: The images of each subgroup, by their numbers.
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        groups: Name of each image's group, which the bootstrap draws; None to draw images.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    measured = {}
    for name, images in subgroups.items():
        own_groups = None if groups is None else [groups[i] for i in images]
        metrics, intervals = (dict.fromkeys(SUBGROUP_METRICS) for _ in range(2))
        if len(images) >= _FEWEST_IMAGES:
            own = probs[images], targets[images]
            all_metrics, _ = compute_metrics(*own)
            all_intervals, _ = bootstrap_intervals(*own, own_groups, resamples=resamples, seed=seed)
            for metric in SUBGROUP_METRICS:
                if metric != "f1" or len(own[1].unique()) == probs.shape[1]:
                    metrics[metric], intervals[metric] = all_metrics[metric], all_intervals[metric]
        count = {} if own_groups is None else dict(groups=len(set(own_groups)))
        measured[name] = dict(images=len(images), **count, **metrics, intervals=intervals)
    return measured
