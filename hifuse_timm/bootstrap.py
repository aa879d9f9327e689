"""Intervals of metrics by the bootstrap: over images, or over groups of images, as those of a patient."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.functional import one_hot, pad

from .metrics import CALIBRATION_BINS, as_number, brier_scores, calibration_bins
from .runs import CLASS_METRICS, METRICS, SPECIFICITIES

__all__ = [
    "RESAMPLED",
    "bootstrap_intervals",
    "check_resampling",
    "count_groups",
    "draw_weights",
    "percentile_interval",
    "weighted_metrics",
]

_logger = logging.getLogger(__name__)

RESAMPLED = ("groups", "images")  # what may be drawn

_FEW_GROUPS = 20  # under which percentile intervals are too narrow

_RESAMPLES_AT_ONCE = 128  # bounds the memory, and stays in the cache


def draw_weights(
    num_images: int, resamples: int, seed: int = 0, groups: Sequence[str] | None = None
) -> Iterator[torch.Tensor]:
    """How often each image counts in each resample, some resamples at a time.

    As many images as there are are drawn with replacement; or as many groups as there are, with all images of each (the
    cluster bootstrap), so that what is drawn is independent where images of one group are not.

    Args:
        num_images: Number of images, N.
        resamples: Number of resamples, R.
        seed: Seed of the draw.
        groups: Name of each image's group, (N,); None to draw images.

    Yields:
        Counts of a part of the resamples, (R', N) in float64; the parts are R together.
    """
    numbers = {}
    group = torch.tensor([numbers.setdefault(name, len(numbers)) for name in groups or range(num_images)])
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = (min(_RESAMPLES_AT_ONCE, resamples - start), len(numbers))
        drawn = torch.randint(len(numbers), size, generator=generator)
        times = torch.zeros(size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(size, dtype=torch.float64))
        yield times if groups is None else times[:, group]


def check_resampling(resamples: int, resample: str | None = None) -> None:
    """Check before long work how resamples are to be drawn: how many, and of what, None for what there is.

    Raises:
        ValueError: If an argument is not valid.
    """
    if resamples < 1:
        raise ValueError(f"resamples {resamples} is too small: expected 1 or more")
    if resample not in (None, *RESAMPLED):
        raise ValueError(f"resample {resample!r} is not known: expected one of {', '.join(RESAMPLED)}")


def count_groups(groups: Sequence[str]) -> int:
    """The number of groups; a warning where they are too few for percentile intervals."""
    if (count := len(set(groups))) < _FEW_GROUPS:
        _logger.warning(
            f"{count} groups are few: intervals over fewer than {_FEW_GROUPS} come out too narrow, by the percentiles "
            "of a bootstrap"
        )
    return count


def bootstrap_intervals(
    probs: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[dict[str, list[float] | None], dict[str, list[list[float] | None]]]:
    """Percentile intervals of all metrics, over images or over groups of them.

    Every resample is measured by the definitions of `compute_metrics`; one in which a metric is undefined does not
    count for it. Without groups the images are taken to be independent, so several images of one patient make the
    intervals too narrow. With few groups, under 20 or so, percentile intervals are too narrow by themselves.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        groups: Name of each image's group, (N,); None to resample images.
        resamples: Number of resamples.
        seed: Seed of the draw.
        level: Share of the resamples within an interval.

    Returns:
        Lower and upper bound of each of `METRICS`, and of each of `CLASS_METRICS` over the classes; None where a metric
        is undefined in all resamples.
    """
    measure = weighted_metrics(probs, targets)
    parts = [measure(times) for times in draw_weights(len(targets), resamples, seed, groups)]
    overall = {name: percentile_interval(torch.cat([part[0][name] for part in parts]), level) for name in METRICS}
    by_class = {
        name: [percentile_interval(values, level) for values in torch.cat([part[1][name] for part in parts]).T]
        for name in CLASS_METRICS
    }
    return overall, by_class


def percentile_interval(values: torch.Tensor, level: float = 0.95) -> list[float] | None:
    """The bounds between which that share of the values lies, (R,), of which those that are NaN do not count.

    Returns:
        Lower and upper bound; None where no value counts.
    """
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    lower, upper = map(as_number, values.nanquantile(bounds))
    return None if lower is None else [lower, upper]


def weighted_metrics(
    probs: torch.Tensor, targets: torch.Tensor
) -> Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Gives a function that measures many weightings of the same images at once.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).

    Returns:
        A function of how often each image counts, (R, N) in float64, to each of `METRICS`, (R,), and of
        `CLASS_METRICS`, (R, K), by the definitions of `compute_metrics`; NaN where one is undefined.
    """
    probs = probs.double()
    num_classes = probs.shape[1]
    confidence, predicted = probs.amax(dim=1), probs.argmax(dim=1)
    is_target = one_hot(targets, num_classes).double()  # N K
    is_predicted = one_hot(predicted, num_classes).double()
    is_hit = is_target * is_predicted
    gap = (
        one_hot(calibration_bins(confidence), CALIBRATION_BINS)
        * ((predicted == targets).double() - confidence)[:, None]
    )  # N bins
    brier = brier_scores(probs, targets)
    rankings = [_Ranking(probs[:, k], targets == k) for k in range(num_classes)]

    def measure(times: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        support, claimed, hits = times @ is_target, times @ is_predicted, times @ is_hit  # R K
        total = times.sum(1)
        negatives = total[:, None] - support
        ranked = [ranking.measure(times) for ranking in rankings]
        by_class = dict(
            precision=(hits / claimed).nan_to_num(0),
            recall=(hits / support).nan_to_num(0),
            specificity=((negatives - claimed + hits) / negatives).nan_to_num(0),
            f1=(2 * hits / (support + claimed)).nan_to_num(0),
            **{name: torch.stack([of_class[name] for of_class in ranked], dim=1) for name in ranked[0]},
        )
        right = hits.sum(1)
        agreeing = (support * claimed).sum(1)  # of kappa by chance, times the total
        spread = (total**2 - support.square().sum(1)) * (total**2 - claimed.square().sum(1))
        overall = dict(
            accuracy=right / total,
            balanced_accuracy=by_class["recall"].sum(1) / (support > 0).sum(1),
            f1=by_class["f1"].mean(1),
            precision=by_class["precision"].mean(1),
            recall=by_class["recall"].mean(1),
            ece=(times @ gap).abs().sum(1) / total,
            kappa=(right * total - agreeing) / (total**2 - agreeing),  # 0 / 0 is undefined
            mcc=((right * total - agreeing) / spread.sqrt()).nan_to_num(0),
            brier=times @ brier / total,
            **{name: by_class[name].nanmean(1) for name in ranked[0]},
        )
        return overall, by_class

    return measure


class _Ranking:
    """Images in the order of their scores for a class: those of the class, and the others."""

    def __init__(self, scores: torch.Tensor, is_own: torch.Tensor):
        order = scores.argsort()
        self.own, self.others = order[is_own[order]], order[~is_own[order]]
        own, others = scores[self.own], scores[self.others]
        # of each own image: how many others, and own ones, score lower, and how many of the others no higher
        self.lower, self.not_higher = torch.searchsorted(others, own), torch.searchsorted(others, own, right=True)
        self.own_lower = torch.searchsorted(own, own)
        # how many own images score no higher than each other one, behind none of them
        self.own_not_higher = pad(torch.searchsorted(own, others, right=True), (1, 0))

    def measure(self, times: torch.Tensor) -> dict[str, torch.Tensor]:
        """What rests on the ranking, (R,) each, of weightings, (R, N)."""
        own_times = times[:, self.own]
        own = pad(own_times.cumsum(1), (1, 0))  # R own+1
        others = pad(times[:, self.others].cumsum(1), (1, 0))  # R others+1
        num_own, num_others = own[:, -1:], others[:, -1:]
        # the share of pairs of an image of the class and another in which the first scores higher; ties count half
        won = (own_times * (others[:, self.lower] + others[:, self.not_higher]) / 2).sum(1, keepdim=True)
        # at each own image's score as the threshold
        hits, false_alarms = num_own - own[:, self.own_lower], num_others - others[:, self.lower]
        precision = (hits / (hits + false_alarms)).nan_to_num(0)
        measured = dict(
            auroc=won / (num_own * num_others),  # 0 / 0 is undefined
            average_precision=(own_times * precision).sum(1, keepdim=True) / num_own,
        )
        for name, specificity in SPECIFICITIES.items():
            # how many of the others must score lower; counts are whole numbers, so a little less is rounding
            below = torch.searchsorted(others, specificity * num_others - 1e-6)
            missed = own.gather(1, self.own_not_higher[below])
            measured[name] = (1 - missed / num_own).where(num_others > 0, torch.nan)
        return {name: values[:, 0] for name, values in measured.items()}
