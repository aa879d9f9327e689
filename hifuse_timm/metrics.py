"""Metrics of a classification, those of the paper's Section 4.2 and others.

What the paper leaves open is done as scikit-learn does it with `zero_division=0` and all classes as labels: precision,
recall and F1 are averaged over all classes of the network, and are 0 for a class that is never predicted (precision) or
never occurs (recall). Balanced accuracy, AUROC, average precision and the sensitivities at a specificity, each class
against the rest, are averaged over the classes that occur. The Brier score is a sum over the classes, from 0 to 2, and
for two classes half of it, from 0 to 1. Undefined is None.
"""

import warnings
from functools import partial

import torch
from torch.nn.functional import one_hot

from .errors import require
from .runs import CLASS_METRICS, METRICS, SPECIFICITIES

__all__ = [
    "CALIBRATION_BINS",
    "as_number",
    "brier_scores",
    "calibration_bins",
    "calibration_curve",
    "compute_metrics",
]

# Of equal width from 0 to 1, for the probability of the predicted class (Guo et al. 2017).
CALIBRATION_BINS = 15


def compute_metrics(
    probs: torch.Tensor, targets: torch.Tensor
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Compute all metrics, with torchmetrics and scikit-learn.

    AUROC is that of each class against the rest; the expected calibration error is that of the predicted class. The
    sensitivity at a specificity is that of the ROC curve's point of the highest sensitivity among those that have the
    specificity or more, without interpolation. Its threshold is chosen on these same images, so it is optimistic.

    Args:
        probs: Probability of each class for each image, (N, K), float64 so that few of them are tied.
        targets: Class index of each image, (N,).

    Returns:
        Each of `METRICS`, and each of `CLASS_METRICS` as a list over the classes; None where one is undefined.
    """
    from torchmetrics.functional import classification as metrics

    num_classes = probs.shape[1]
    predicted = probs.argmax(dim=1)
    counts = targets.bincount(minlength=num_classes)
    occurs = counts > 0
    by_class = {
        name: metric(predicted, targets, num_classes, average=None)
        for name, metric in (
            ("precision", metrics.multiclass_precision),
            ("recall", metrics.multiclass_recall),
            ("specificity", metrics.multiclass_specificity),
            ("f1", metrics.multiclass_f1_score),
        )
    }
    # torchmetrics gives 0 where there is no positive or no negative, and would average it in
    defined = occurs & (counts < len(targets))
    for name, metric, where in (
        ("auroc", metrics.binary_auroc, defined),
        ("average_precision", metrics.binary_average_precision, occurs),
        *(
            (name, partial(_sensitivity_at, specificity=specificity), defined)
            for name, specificity in SPECIFICITIES.items()
        ),
    ):
        by_class[name] = torch.stack(
            [
                metric(probs[:, k], (targets == k).long()) if where[k] else torch.tensor(torch.nan)
                for k in range(num_classes)
            ]
        )
    overall = dict(
        accuracy=metrics.multiclass_accuracy(predicted, targets, num_classes, average="micro"),
        balanced_accuracy=by_class["recall"][occurs].mean(),
        f1=by_class["f1"].mean(),
        precision=by_class["precision"].mean(),
        recall=by_class["recall"].mean(),
        auroc=by_class["auroc"].nanmean(),
        # a probability of exactly 1, to which torchmetrics rounds, would get a bin of its own
        ece=metrics.multiclass_calibration_error(
            probs.clamp(max=1 - 1e-6), targets, num_classes, n_bins=CALIBRATION_BINS, norm="l1"
        ),
        average_precision=by_class["average_precision"].nanmean(),
        kappa=metrics.multiclass_cohen_kappa(predicted, targets, num_classes),
        mcc=_matthews_correlation(predicted, targets),
        brier=brier_scores(probs, targets).mean(),
        **{name: by_class[name].nanmean() for name in SPECIFICITIES},
    )
    return (
        {name: as_number(overall[name]) for name in METRICS},
        {name: [as_number(value) for value in by_class[name]] for name in CLASS_METRICS},
    )


def brier_scores(probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What each image adds to the mean that is the Brier score, (N,)."""
    squares = (probs - one_hot(targets, probs.shape[1])).square().sum(1)
    return squares / 2 if probs.shape[1] == 2 else squares


def _matthews_correlation(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # torchmetrics' own gives odd values where one of two classes is never predicted
    sklearn_metrics = require("sklearn.metrics", "medical")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found")  # of which it makes 0, too
        return torch.tensor(sklearn_metrics.matthews_corrcoef(targets, predicted))


def _sensitivity_at(scores: torch.Tensor, targets: torch.Tensor, specificity: float) -> torch.Tensor:
    from torchmetrics.functional.classification import binary_sensitivity_at_specificity

    return binary_sensitivity_at_specificity(scores, targets, min_specificity=specificity)[0]


def calibration_bins(confidence: torch.Tensor) -> torch.Tensor:
    """Index of the calibration bin of each probability, (N,)."""
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype)
    return (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=CALIBRATION_BINS - 1)


def calibration_curve(probs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bins of the expected calibration error, by the probability of the predicted class.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).

    Returns:
        Of each bin the number of images, their mean probability and their accuracy; NaN where there are no images.
    """
    confidence, predicted = probs.max(dim=1)
    bins = calibration_bins(confidence)
    counts, sums, hits = (
        bins.bincount(values, CALIBRATION_BINS) for values in (None, confidence, (predicted == targets).double())
    )
    return counts, sums / counts, hits / counts


def as_number(value: torch.Tensor) -> float | None:
    """A value as results have it, to six decimals; None for NaN."""
    return None if value.isnan() else round(value.item(), 6)
