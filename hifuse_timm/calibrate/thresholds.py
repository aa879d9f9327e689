"""Thresholds of a class against the rest: by a wanted sensitivity or specificity, or by Youden's index."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

__all__ = ["Aim", "find_bound", "weighted_threshold"]


@dataclass(frozen=True)
class Aim:
    """What a threshold is to reach.

    Attributes:
        name: One of `calibration.AIMS`.
        wanted: The least sensitivity or specificity; None for Youden's index.
    """

    name: str
    wanted: float | None = None


def weighted_threshold(scores: torch.Tensor, is_own: torch.Tensor, aim: Aim) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gives a function that chooses the threshold for many weightings of the same images at once.

    A threshold lies midway between two neighbouring scores, or between the lowest one and 0, so that no rounding of
    scores moves an image across it. For a sensitivity it is the highest that reaches it, for a specificity the lowest;
    for Youden's index, sensitivity + specificity - 1, the one where that is greatest, of equal ones the lowest.

    Args:
        scores: Probability of the class for each image, (N,).
        is_own: Whether each image is of the class, (N,).
        aim: What to choose by.

    Returns:
        A function of how often each image counts, (R, N) in float64, to the threshold of each weighting, (R,); NaN
        where there are no images of the class, or none of the others, or none reaches what is wanted.
    """
    order = scores.argsort()
    values = scores.unique()  # in ascending order
    cuts = _midways(values)
    below = torch.searchsorted(scores[order], values)  # how many images score lower than each cut
    own = is_own[order].double()

    def choose(times: torch.Tensor) -> torch.Tensor:
        times = times[:, order]
        missed, rejected = (pad((times * share).cumsum(1), (1, 0)) for share in (own, 1 - own))  # R N+1
        num_own, num_others = missed[:, -1:], rejected[:, -1:]
        hits, rejected = num_own - missed[:, below], rejected[:, below]  # R cuts
        if aim.name == "sensitivity":
            index = (hits / num_own >= aim.wanted).sum(1) - 1
        elif aim.name == "specificity":
            index = (rejected / num_others < aim.wanted).sum(1)
        else:
            index = (hits * num_others + rejected * num_own).argmax(1)
        exists = (num_own > 0)[:, 0] & (num_others > 0)[:, 0] & (index < len(cuts))
        return cuts[index.clamp(0, len(cuts) - 1)].where(exists, torch.nan)

    return choose


def find_bound(confidence: torch.Tensor, share: float) -> float:
    """The highest bound that no more than a share of the images is under.

    Args:
        confidence: Greatest probability of each image, (N,).
        share: The share, from 0 to under 1.

    Returns:
        The bound, midway between two neighbouring probabilities, or between the lowest one and 0.
    """
    values = confidence.unique()
    below = torch.searchsorted(confidence.sort().values, values)  # how many images are under each bound
    return _midways(values)[(below / len(confidence) <= share).sum() - 1].item()


def _midways(values: torch.Tensor) -> torch.Tensor:
    """Between each of ascending values and the one before it: above the latter, and no more than the former."""
    lower = pad(values[:-1], (1, 0))
    midways = (lower + values) / 2
    return midways.where(midways > lower, values)
