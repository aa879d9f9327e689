"""Temperature and thresholds are those of slow, plain searches, also in resamples, and of what is known beforehand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from hifuse_timm.calibrate.temperature import fit_temperature, weighted_temperature
from hifuse_timm.calibrate.thresholds import Aim, find_bound, weighted_threshold
from hifuse_timm.calibration import TEMPERATURES, Calibration


def simulate(images=400, num_classes=3, scale=1.0, seed=0, digits=None):
    """Probabilities of a network whose logits are those of the truth times a scale, and true classes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, num_classes))
    true = np.exp(log_softmax(logits, axis=1))
    targets = torch.tensor([rng.choice(num_classes, p=p) for p in true])
    probs = torch.tensor(np.exp(log_softmax(scale * logits, axis=1)))
    return (probs if digits is None else probs.round(decimals=digits)), targets


def draw(images, resamples=40, seed=0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, images, (resamples, images))
    return torch.tensor(np.array([np.bincount(row, minlength=images) for row in drawn]), dtype=torch.float64)


ONE = torch.ones(1, 400, dtype=torch.float64)


def plain_loss(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(targets)), targets].mean()


# Temperature


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_temperature_of_scaled_logits_is_the_scale(scale):
    """A network that is calibrated but for a factor of its logits has that temperature (Guo et al. 2017)."""
    probs, targets = simulate(20_000, scale=scale)
    temperature = fit_temperature(probs, targets)
    assert temperature == pytest.approx(scale, rel=0.03)
    plain, _ = simulate(20_000)
    calibrated = Calibration(("a", "b", "c"), temperature).apply(probs)
    assert (calibrated - plain).abs().max() < 0.02 < (probs - plain).abs().max() + (scale == 1.0)
    assert torch.equal(calibrated.argmax(1), probs.argmax(1))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_temperature_is_that_of_a_grid_search(scale):
    probs, targets = simulate(scale=scale)
    grid = np.linspace(0.2, 5, 9601)  # by 0.0005
    losses = [plain_loss(probs.log().numpy(), targets.numpy(), t) for t in grid]
    assert fit_temperature(probs, targets) == pytest.approx(grid[np.argmin(losses)], abs=0.0005)


def test_temperature_of_each_resample_is_what_a_fit_to_its_images_finds():
    probs, targets = simulate(scale=1.8)
    times = draw(400)
    found = weighted_temperature(probs, targets)(times)
    for row, temperature in zip(times.int(), found.tolist(), strict=True):
        index = torch.arange(400).repeat_interleave(row)
        logits, own = probs[index].log().numpy(), targets[index].numpy()
        expected = minimize_scalar(partial(plain_loss, logits, own), bounds=(0.2, 8), method="bounded")
        assert temperature == pytest.approx(expected.x, rel=1e-3)
    assert found.std() > 0.05


def test_resamples_without_an_error_or_without_information_have_a_temperature_at_the_limits():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    fit = weighted_temperature(probs, torch.tensor([0, 1, 1]))
    times = torch.tensor([[1, 1, 0], [0, 0, 1], [3, 3, 1]], dtype=torch.float64)
    lowest, highest, between = fit(times).tolist()
    assert (lowest, highest) == pytest.approx(TEMPERATURES) and 0.1 < between < 10


def test_images_that_are_all_right_have_no_temperature():
    for margin in (0.05, 0.4, 0.499):
        probs = torch.tensor([[0.5 + margin, 0.5 - margin], [0.5 - margin, 0.5 + margin]], dtype=torch.float64)
        assert fit_temperature(probs, torch.tensor([0, 1])) is None
        assert fit_temperature(probs.repeat(50, 1), torch.tensor([0, 1] * 49 + [0, 0])) is not None


def test_probabilities_that_say_nothing_are_refused():
    probs, targets = simulate()
    for useless in (torch.full((400, 3), 1 / 3, dtype=torch.float64), 1 - probs):
        with pytest.raises(ValueError, match="as where the probabilities say nothing of the true classes"):
            fit_temperature(useless / useless.sum(1, keepdim=True), targets)


def test_probability_of_zero_stays_the_least_and_no_number_is_lost():
    probs = torch.tensor([[1, 0, 0], [1 - 1e-300, 1e-300, 0], [0.7, 0.3, 0]], dtype=torch.float64)
    for temperature in (0.01, 1.0, 2.0, 100.0):
        calibrated = Calibration(("a", "b", "c"), temperature).apply(probs)
        assert calibrated.isfinite().all() and torch.allclose(calibrated.sum(1), torch.ones(3, dtype=torch.float64))
        assert (calibrated.argmax(1) == 0).all() and (calibrated[1:, 1] >= calibrated[1:, 2]).all()


# Thresholds

AIMS = [
    Aim("sensitivity", 0.95),
    Aim("sensitivity", 1.0),
    Aim("specificity", 0.9),
    Aim("specificity", 0.5),
    Aim("youden"),
]


def enumerate_thresholds(scores: np.ndarray, is_own: np.ndarray, times: np.ndarray, aim: Aim) -> float:
    """The threshold by trying one below each score; sensitivity and specificity by counting."""
    values = sorted(set(scores.tolist()))
    cuts = [(low + high) / 2 for low, high in zip([0.0, *values], values, strict=False)]
    num_own, num_others = times[is_own].sum(), times[~is_own].sum()
    if num_own == 0 or num_others == 0:
        return math.nan
    tried = []
    for cut in cuts:
        sensitivity = times[is_own & (scores >= cut)].sum() / num_own
        specificity = times[~is_own & (scores < cut)].sum() / num_others
        tried.append((cut, sensitivity, specificity))
    if aim.name == "sensitivity":
        return max(cut for cut, sensitivity, _ in tried if sensitivity >= aim.wanted)
    if aim.name == "specificity":
        return min((cut for cut, _, specificity in tried if specificity >= aim.wanted), default=math.nan)
    best = max(round(sensitivity + specificity, 9) for _, sensitivity, specificity in tried)
    return min(cut for cut, sensitivity, specificity in tried if round(sensitivity + specificity, 9) == best)


@pytest.mark.parametrize("aim", AIMS, ids=str)
@pytest.mark.parametrize("case", [dict(), dict(digits=1), dict(images=12), dict(images=60, num_classes=2)], ids=str)
def test_threshold_is_that_of_an_enumeration_in_each_resample(aim, case):
    probs, targets = simulate(**case)
    times = torch.cat([ONE[:, : len(targets)], draw(len(targets))])
    for k in range(probs.shape[1]):
        is_own = targets == k
        found = weighted_threshold(probs[:, k], is_own, aim)(times)
        arrays = probs[:, k].numpy(), is_own.numpy()
        expected = [enumerate_thresholds(*arrays, row, aim) for row in times.numpy()]
        assert np.array_equal(found, expected, equal_nan=True)


def test_wanted_sensitivity_and_specificity_are_reached_and_no_threshold_beyond_does():
    probs, targets = simulate()
    scores, is_own = probs[:, 0], targets == 0
    own, others = scores[is_own].sort().values, scores[~is_own].sort().values
    threshold = weighted_threshold(scores, is_own, Aim("sensitivity", 0.95))(ONE).item()
    assert (own >= threshold).double().mean() >= 0.95 > (own > own[own >= threshold][0]).double().mean()
    threshold = weighted_threshold(scores, is_own, Aim("specificity", 0.9))(ONE).item()
    assert (others < threshold).double().mean() >= 0.9 > (others < others[others < threshold][-1]).double().mean()


def test_rounding_of_probabilities_moves_no_image_across_a_threshold():
    probs, targets = simulate()
    for aim in AIMS:
        threshold = weighted_threshold(probs[:, 0], targets == 0, aim)(ONE).item()
        rounded = torch.tensor([float(f"{p:.9g}") for p in probs[:, 0].tolist()])
        assert torch.equal(rounded >= threshold, probs[:, 0] >= threshold)
        assert (probs[:, 0] - threshold).abs().min() > 1e-6


def test_share_under_the_bound_is_the_greatest_that_is_allowed():
    probs, _ = simulate()
    for confidence in (probs.amax(1), probs.amax(1).round(decimals=1)):
        for share in (0.0, 0.1, 0.5, 0.999):
            bound = find_bound(confidence, share)
            under = (confidence < bound).double().mean()
            next_one = confidence[confidence >= bound].min()
            assert under <= share < (confidence <= next_one).double().mean()
