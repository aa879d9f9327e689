"""ROC and precision-recall curves of classes against the rest, with the bands of a bootstrap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .errors import require

__all__ = ["ClassCurves", "Curve", "measure_curves"]

_GRID = np.linspace(0, 1, 101)  # where a band is measured


@dataclass(frozen=True)
class Curve:
    """A curve, and a band around it.

    Attributes:
        x: From 0 to 1, rising.
        y: The curve there, from 0 to 1.
        grid: Where the band is measured, from 0 to 1, rising.
        lower: Lower bound of the band on the grid; NaN where no resample counts.
        upper: Upper bound of the band on the grid, likewise.
    """

    x: np.ndarray
    y: np.ndarray
    grid: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class ClassCurves(NamedTuple):
    """The curves of a class against the rest.

    Attributes:
        roc: True positive rate by false positive rate; straight between its points.
        precision_recall: Precision by recall; each point holds from the recall before it, as in average precision.
    """

    roc: Curve
    precision_recall: Curve


def measure_curves(
    probs: torch.Tensor,
    targets: torch.Tensor,
    weights: Iterable[torch.Tensor],
    classes: Sequence[int],
    level: float = 0.95,
) -> list[ClassCurves | None]:
    """Measure the curves of classes with scikit-learn, and their bands over resamples of the images.

    A band is pointwise: at each false positive rate, or each recall, it holds the middle share of the resamples. One
    without an image of the class, or without another, does not count for it.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        weights: How often each image counts in each resample, in parts (R', N), as `bootstrap.draw_weights` draws them.
        classes: Indices of the classes to measure.
        level: Share of the resamples within a band.

    Returns:
        The curves of each class; None where all images are of the class, or none.

    Raises:
        RuntimeError: If scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", "medical")
    measured = [_Class(probs[:, k].numpy(), (targets == k).numpy()) for k in classes]
    defined = [of_class for of_class in measured if of_class.is_defined]
    for part in weights:
        for of_class in defined:
            of_class.resample(part.numpy())
    return [of_class.measure(metrics, level) if of_class.is_defined else None for of_class in measured]


class _Class:
    """A class against the rest, whose curves are measured over parts of the resamples in turn."""

    def __init__(self, scores: np.ndarray, is_class: np.ndarray):
        self.scores, self.is_class = scores, is_class
        self.is_defined = is_class.any() and not is_class.all()
        self.order = np.argsort(-scores, kind="stable")
        self.ends = np.flatnonzero(np.diff(scores[self.order], append=-1))  # the last of each that are tied
        self.rates, self.precisions = [], []  # of each resample, on the grid

    def resample(self, times: np.ndarray) -> None:
        times = times[:, self.order]
        hits = (times * self.is_class[self.order]).cumsum(1)[:, self.ends]
        alarms = times.cumsum(1)[:, self.ends] - hits
        for hit, alarm in zip(hits, alarms, strict=True):
            if hit[-1] and alarm[-1]:
                rate = hit / hit[-1]
                self.rates.append(np.interp(_GRID, np.append(0, alarm / alarm[-1]), np.append(0, rate)))
                reached = np.searchsorted(rate, _GRID[1:] - 1e-9)  # against rounding
                self.precisions.append(hit[reached] / (hit[reached] + alarm[reached]))

    def measure(self, metrics, level: float) -> ClassCurves:
        false_positive_rate, true_positive_rate, _ = metrics.roc_curve(self.is_class, self.scores)
        precision, recall, _ = metrics.precision_recall_curve(self.is_class, self.scores, drop_intermediate=True)
        recall, first = np.unique(recall[::-1], return_index=True)  # of the same recall, the greatest precision counts
        first[0] = first[1]  # in the place of scikit-learn's precision 1 at recall 0, which no image makes
        return ClassCurves(
            Curve(false_positive_rate, true_positive_rate, _GRID, *_bounds(self.rates, _GRID, level)),
            Curve(recall, precision[::-1][first], _GRID[1:], *_bounds(self.precisions, _GRID[1:], level)),
        )


def _bounds(values: list[np.ndarray], grid: np.ndarray, level: float) -> np.ndarray:
    if not values:
        return np.full((2, len(grid)), np.nan)
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
