"""Metrics of a classification, those of the paper's Section 4.2 and others, with bootstrap intervals.

What the paper leaves open is done as scikit-learn does it with `zero_division=0` and all classes as labels: precision,
recall and F1 are averaged over all classes of the network, and are 0 for a class that is never predicted (precision) or
never occurs (recall). Balanced accuracy and AUROC are averaged over the classes that occur. Undefined is None.
"""

import torch
from torch.nn.functional import one_hot

from ..runs import CLASS_METRICS, METRICS

__all__ = ["CALIBRATION_BINS", "CLASS_METRICS", "METRICS", "bootstrap_intervals", "calibration_bins", "compute_metrics"]

# Of equal width from 0 to 1, for the probability of the predicted class (Guo et al. 2017).
CALIBRATION_BINS = 15

_RESAMPLES_AT_ONCE = 128  # bounds the memory, and stays in the cache


def compute_metrics(
    probs: torch.Tensor, targets: torch.Tensor
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Compute all metrics with torchmetrics.

    AUROC is that of each class against the rest; the expected calibration error is that of the predicted class.

    Args:
        probs: Probability of each class for each image, (N, K), float64 so that few of them are tied.
        targets: Class index of each image, (N,).

    Returns:
        Each of `METRICS`, and each of `CLASS_METRICS` as a list over the classes; None where one is undefined.
    """
    from torchmetrics.functional.classification import (
        binary_auroc,
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
        multiclass_specificity,
    )

    num_classes = probs.shape[1]
    predicted = probs.argmax(dim=1)
    counts = targets.bincount(minlength=num_classes)
    occurs = counts > 0
    by_class = {
        name: metric(predicted, targets, num_classes, average=None)
        for name, metric in (
            ("precision", multiclass_precision),
            ("recall", multiclass_recall),
            ("specificity", multiclass_specificity),
            ("f1", multiclass_f1_score),
        )
    }
    # torchmetrics gives 0 where there is no positive or no negative, and would average it in
    defined = occurs & (counts < len(targets))
    by_class["auroc"] = torch.stack(
        [
            binary_auroc(probs[:, k], (targets == k).long()) if defined[k] else torch.tensor(torch.nan)
            for k in range(num_classes)
        ]
    )
    overall = dict(
        accuracy=multiclass_accuracy(predicted, targets, num_classes, average="micro"),
        balanced_accuracy=by_class["recall"][occurs].mean(),
        f1=by_class["f1"].mean(),
        precision=by_class["precision"].mean(),
        recall=by_class["recall"].mean(),
        auroc=by_class["auroc"].nanmean(),
        # a probability of exactly 1, to which torchmetrics rounds, would get a bin of its own
        ece=multiclass_calibration_error(
            probs.clamp(max=1 - 1e-6), targets, num_classes, n_bins=CALIBRATION_BINS, norm="l1"
        ),
    )
    return (
        {name: _number(overall[name]) for name in METRICS},
        {name: [_number(value) for value in by_class[name]] for name in CLASS_METRICS},
    )


def bootstrap_intervals(
    probs: torch.Tensor, targets: torch.Tensor, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[dict[str, list[float] | None], dict[str, list[list[float] | None]]]:
    """Percentile intervals of all metrics, by drawing as many images as there are, with replacement.

    Every resample is measured by the definitions of `compute_metrics`; one in which a metric is undefined does not
    count for it. Images are taken to be independent, so several images of one patient make the intervals too narrow.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        resamples: Number of resamples.
        seed: Seed of the draw.
        level: Share of the resamples within an interval.

    Returns:
        Lower and upper bound of each of `METRICS`, and of each of `CLASS_METRICS` over the classes; None where a metric
        is undefined in all resamples.
    """
    probs = probs.double()
    measure = _weighted_metrics(probs, targets)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = (min(_RESAMPLES_AT_ONCE, resamples - start), len(targets))
        drawn = torch.randint(len(targets), size, generator=generator)
        times = torch.zeros(size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(size, dtype=torch.float64))
        parts.append(measure(times))
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)

    def interval(values: torch.Tensor) -> list[float] | None:
        lower, upper = (_number(bound) for bound in values.nanquantile(bounds))
        return None if lower is None else [lower, upper]

    overall = {name: interval(torch.cat([part[0][name] for part in parts])) for name in METRICS}
    by_class = {
        name: [interval(values) for values in torch.cat([part[1][name] for part in parts]).T] for name in CLASS_METRICS
    }
    return overall, by_class


def calibration_bins(confidence: torch.Tensor) -> torch.Tensor:
    """Index of the calibration bin of each probability, (N,)."""
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype)
    return (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=CALIBRATION_BINS - 1)


def _number(value: torch.Tensor) -> float | None:
    return None if value.isnan() else round(value.item(), 6)


def _weighted_metrics(probs: torch.Tensor, targets: torch.Tensor):
    """Gives a function that measures many weightings of the same images at once.

    It takes how often each image counts, (R, N), and returns each of METRICS, (R,), and of CLASS_METRICS, (R, K).
    """
    num_classes = probs.shape[1]
    confidence, predicted = probs.amax(dim=1), probs.argmax(dim=1)
    is_target = one_hot(targets, num_classes).double()  # N K
    is_predicted = one_hot(predicted, num_classes).double()
    is_hit = is_target * is_predicted
    gap = (
        one_hot(calibration_bins(confidence), CALIBRATION_BINS)
        * ((predicted == targets).double() - confidence)[:, None]
    )  # N bins

    ranks = []  # of each class: order by score, and for its own images, where their ties begin and end in it
    for k in range(num_classes):
        scores, order = probs[:, k].sort()
        own = scores[targets[order] == k].contiguous()
        ranks.append((order, torch.searchsorted(scores, own), torch.searchsorted(scores, own, right=True)))

    def auroc(times: torch.Tensor, k: int) -> torch.Tensor:
        """Share of pairs of an image of the class and another in which the first scores higher; ties count half."""
        order, start, end = ranks[k]
        own_times = times[:, order[targets[order] == k]]
        others = torch.nn.functional.pad((times * (1 - is_target[:, k]))[:, order].cumsum(1), (1, 0))  # R N+1
        won = (own_times * (others[:, start] + others[:, end]) / 2).sum(1)
        return won / (own_times.sum(1) * others[:, -1])  # 0 / 0 is undefined

    def measure(times: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        support, claimed, hits = times @ is_target, times @ is_predicted, times @ is_hit  # R K
        total = times.sum(1)
        negatives = total[:, None] - support
        by_class = dict(
            precision=(hits / claimed).nan_to_num(0),
            recall=(hits / support).nan_to_num(0),
            specificity=((negatives - claimed + hits) / negatives).nan_to_num(0),
            f1=(2 * hits / (support + claimed)).nan_to_num(0),
            auroc=torch.stack([auroc(times, k) for k in range(num_classes)], dim=1),
        )
        overall = dict(
            accuracy=hits.sum(1) / total,
            balanced_accuracy=by_class["recall"].sum(1) / (support > 0).sum(1),
            f1=by_class["f1"].mean(1),
            precision=by_class["precision"].mean(1),
            recall=by_class["recall"].mean(1),
            auroc=by_class["auroc"].nanmean(1),
            ece=(times @ gap).abs().sum(1) / total,
        )
        return overall, by_class

    return measure
