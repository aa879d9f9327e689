"""Tests of whether two networks differ on the same images, which they take as independent of each other."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import require

__all__ = ["DeLong", "delong_test", "holm", "mcnemar_exact"]


class DeLong(NamedTuple):
    """What DeLong's test says of two areas under the ROC curve.

    Attributes:
        areas: The area of each.
        difference: The first less the second.
        interval: The difference's interval of 95%, by its standard error.
        z: The difference in standard errors.
        p: Two-sided p-value.
    """

    areas: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    z: float
    p: float


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, a sign test of the images that one of two networks alone has right.

    Args:
        only_first: Number of images that the first network alone has right.
        only_second: Number of those that the second one alone has right.
    """
    stats = require("scipy.stats", "medical")
    disagreeing = only_first + only_second
    return float(stats.binomtest(only_first, disagreeing).pvalue) if disagreeing else 1.0


def delong_test(first: torch.Tensor, second: torch.Tensor, is_positive: torch.Tensor) -> DeLong | None:
    """DeLong's test of the areas under the ROC curves of two scores of the same images (DeLong et al. 1988).

    The areas and their covariance are computed from ranks (Sun and Xu 2014).

    Args:
        first: A score for each image, (N,), greater for positives.
        second: Another score for each image, (N,).
        is_positive: Whether each image is positive, (N,).

    Returns:
        None where it is not defined: with less than two positives or negatives, and where two areas differ and neither
        has a spread, as with perfect scores.
    """
    stats = require("scipy.stats", "medical")
    is_positive = is_positive.bool()
    scores = torch.stack([first, second]).double()
    positives, negatives = scores[:, is_positive], scores[:, ~is_positive]
    num_positives, num_negatives = positives.shape[1], negatives.shape[1]
    if min(num_positives, num_negatives) < 2:
        return None

    def rank(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(stats.rankdata(values.numpy(), axis=1))  # of ties their mean

    ranks = rank(scores)
    # of each positive the share of negatives below it, of each negative the share of positives above it
    above = (ranks[:, is_positive] - rank(positives)) / num_negatives
    below = 1 - (ranks[:, ~is_positive] - rank(negatives)) / num_positives
    areas = above.mean(1)
    covariance = above.cov() / num_positives + below.cov() / num_negatives
    difference = (areas[0] - areas[1]).item()
    error = math.sqrt(max(0.0, (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]).item()))
    if error < 1e-12:  # equal rankings, or areas without a spread
        if abs(difference) > 1e-12:
            return None
        z = 0.0
    else:
        z = difference / error
    half = float(stats.norm.ppf(0.975)) * error
    interval = (difference - half, difference + half)
    return DeLong(tuple(areas.tolist()), difference, interval, z, float(2 * stats.norm.sf(abs(z))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values of several tests as corrected by Holm's step-down method, in their order; None stays None."""
    given = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for rank, (p, i) in enumerate(given):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        corrected[i] = largest
    return corrected
