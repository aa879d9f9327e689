"""The temperature of greatest likelihood (Guo et al. 2017), and what it becomes in resamples."""

import math
from collections.abc import Callable

import torch

from ..calibration import TEMPERATURES, log_probabilities, mean_loss

__all__ = ["fit_temperature", "weighted_temperature"]

_FLAT = 1e-12  # a slope of the mean loss that is rounding
_GRID = 400  # temperatures, each 2.3% above the one before


def fit_temperature(probs: torch.Tensor, targets: torch.Tensor) -> float | None:
    """The temperature at which the true classes have the greatest likelihood.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).

    Returns:
        The temperature; None where the likelihood grows down to the least one, as where all images are classified
        right, so that there is none.

    Raises:
        ValueError: If the likelihood grows up to the greatest one, as where probabilities say nothing of the classes.
    """
    from scipy.optimize import minimize_scalar

    at_least, at_most = _slopes(probs, targets, torch.tensor(TEMPERATURES, dtype=torch.float64)).mean(0).tolist()
    if at_most <= _FLAT:
        raise ValueError(
            f"the likelihood grows up to a temperature of {TEMPERATURES[1]:g}, the greatest, as where the "
            "probabilities say nothing of the true classes: expected those of a trained network, and its true classes"
        )
    if at_least >= -_FLAT:
        return None
    found = minimize_scalar(
        lambda log_temperature: mean_loss(probs, targets, math.exp(log_temperature)),
        bounds=tuple(map(math.log, TEMPERATURES)),
        method="bounded",
        options=dict(xatol=1e-9),
    )
    return math.exp(found.x)


def weighted_temperature(probs: torch.Tensor, targets: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gives a function that fits the temperature to many weightings of the same images at once.

    The mean loss has one minimum, where its slope goes through 0. The slope of a weighting is the weighted mean of the
    images' slopes, so these are needed on a grid of temperatures once, between which a weighting's is interpolated.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).

    Returns:
        A function of how often each image counts, (R, N) in float64, to the temperature of each weighting, (R,), to
        1e-3 of it; one of `TEMPERATURES` where the likelihood grows up to that.
    """
    grid = torch.linspace(*map(math.log, TEMPERATURES), _GRID, dtype=torch.float64)
    slopes = _slopes(probs, targets, grid.exp())

    def fit(times: torch.Tensor) -> torch.Tensor:
        mean = times @ slopes / times.sum(1, keepdim=True)  # R grid
        rises = mean >= -_FLAT
        rises[:, -1] = True
        after = rises.int().argmax(1, keepdim=True).clamp(min=1)  # the first temperature above the root
        below, above = mean.gather(1, after - 1), mean.gather(1, after)
        roots = grid[after - 1].lerp(grid[after], (below / (below - above)).clamp(0, 1))
        return roots.where(~rises[:, :1], grid[0])[:, 0].exp()

    return fit


def _slopes(probs: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """How each image's loss rises with the logarithm of the temperature, (N, temperatures)."""
    logits = log_probabilities(probs)
    true = logits.gather(1, targets[:, None])[:, 0]
    return torch.stack([(true - ((logits / t).softmax(1) * logits).sum(1)) / t for t in temperatures], dim=1)
