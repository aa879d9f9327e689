"""Means over seeds with bootstrap intervals, and paired comparisons of two networks on the same images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hifuse_timm.bootstrap import draw_weights, percentile_interval, weighted_metrics
from hifuse_timm.compare import mcnemar_exact
from hifuse_timm.metrics import compute_metrics
from hifuse_timm.predictions import Predictions

METRICS = dict(accuracy="Acc%", f1="F1%", precision="Prec%", recall="Recall%", auroc="AUROC%")
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A metric of a network, over its seeds.

    Attributes:
        values: Its value for each seed.
        interval: 95% interval of their mean, by resampling images, or groups of them, that all seeds have in common.
    """

    values: list[float]
    interval: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def resample(predictions: Sequence[Predictions]) -> dict[str, torch.Tensor]:
    """Mean over the seeds of each metric in each resample of the images, (R,); the same resamples for all networks."""
    first = predictions[0]
    measures = [weighted_metrics(each.probs, first.targets) for each in predictions]
    parts = [
        [measure(weights)[0] for measure in measures]
        for weights in draw_weights(len(first.files), RESAMPLES, groups=first.groups)
    ]
    return {
        name: torch.cat([torch.stack([of_seed[name] for of_seed in part]).mean(0) for part in parts])
        for name in METRICS
    }


def estimate(predictions: Sequence[Predictions]) -> dict[str, Estimate]:
    """Each of METRICS of a network, from its predictions for the same images, one for each seed."""
    values = [compute_metrics(each.probs, each.targets)[0] for each in predictions]
    drawn = resample(predictions)
    return {name: Estimate([of_seed[name] for of_seed in values], percentile_interval(drawn[name])) for name in METRICS}


@dataclass(frozen=True)
class Comparison:
    """The accuracy of a network against another's, on the same images.

    Attributes:
        difference: Difference of the mean accuracies over the seeds.
        interval: Its 95% interval, by resampling images, or groups, for both at once.
        better: Images that the network classifies right with its seed and the other one wrong.
        worse: The reverse.
        p_value: Of McNemar's exact test of these, which takes images as independent.
    """

    difference: float
    interval: list[float]
    better: int
    worse: int
    p_value: float


def compare(predictions: Sequence[Predictions], reference: Sequence[Predictions]) -> Comparison:
    """Compare two networks: the means over their seeds, and their first seeds by McNemar's exact test."""
    drawn = resample(predictions)["accuracy"] - resample(reference)["accuracy"]
    right = [[each.probs.argmax(1) == each.targets for each in of_network] for of_network in (predictions, reference)]
    accuracies = [torch.stack(of_network).double().mean().item() for of_network in right]
    ours, theirs = right[0][0], right[1][0]
    better, worse = (ours & ~theirs).sum().item(), (theirs & ~ours).sum().item()
    interval = percentile_interval(drawn)
    return Comparison(accuracies[0] - accuracies[1], interval, better, worse, mcnemar_exact(better, worse))
