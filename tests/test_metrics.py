"""Metrics are scikit-learn's, and their intervals those of resamples that are measured one by one."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, roc_auc_score

from hifuse_timm.bootstrap import bootstrap_intervals, draw_weights, weighted_metrics
from hifuse_timm.metrics import compute_metrics
from hifuse_timm.runs import CLASS_METRICS, METRICS, SPECIFICITIES


def predictions(num_classes=7, images=400, never_occurs=(), never_predicted=(), digits=None, seed=0):
    """Random probabilities that tell something of the classes, and the classes; rounded, many of them are tied."""
    generator = torch.Generator().manual_seed(seed)
    occurring = torch.tensor([k for k in range(num_classes) if k not in never_occurs])
    targets = occurring[torch.randint(len(occurring), (images,), generator=generator)]
    logits = torch.randn(images, num_classes, generator=generator, dtype=torch.float64)
    logits += 1.5 * torch.nn.functional.one_hot(targets, num_classes)
    logits[:, list(never_predicted)] -= 20
    probs = logits.softmax(1)
    return (probs if digits is None else probs.round(decimals=digits)), targets


CASES = {
    "all classes": dict(),
    "two classes": dict(num_classes=2),
    "a class never occurs": dict(never_occurs=[2]),
    "a class is never predicted": dict(never_predicted=[0, 4]),
    "a class neither occurs nor is predicted": dict(never_occurs=[1], never_predicted=[1, 3]),
    "ties": dict(digits=1),
    "few images": dict(images=9),
}


def same(values, expected, tolerance=2e-6):
    values, expected = (np.asarray(v, dtype=float) for v in (values, expected))
    return np.allclose(values, expected, rtol=0, atol=tolerance, equal_nan=True)


# Metrics


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_scikit_learns(case):
    probs, targets = predictions(**CASES[case])
    metrics, by_class = compute_metrics(probs, targets)
    num_classes, predicted = probs.shape[1], probs.argmax(1)
    truth = np.arange(num_classes) == targets.numpy()[:, None]
    support = dict(labels=range(num_classes), zero_division=0)

    precision, recall, f1, _ = precision_recall_fscore_support(targets, predicted, average="macro", **support)
    assert same([metrics[name] for name in ("precision", "recall", "f1")], [precision, recall, f1])
    assert same(metrics["accuracy"], (predicted == targets).double().mean())
    assert same(metrics["balanced_accuracy"], balanced_accuracy_score(targets, predicted))
    areas = [roc_auc_score(truth[:, k], probs[:, k]) if truth[:, k].any() else np.nan for k in range(num_classes)]
    assert same(by_class["auroc"], areas)
    assert same(metrics["auroc"], np.nanmean(areas))
    precision, recall, f1, _ = precision_recall_fscore_support(targets, predicted, **support)
    assert same([by_class[name] for name in ("precision", "recall", "f1")], [precision, recall, f1])
    specificity = [1 - (predicted.numpy() == k)[~truth[:, k]].mean() for k in range(num_classes)]
    assert same(by_class["specificity"], specificity)


@pytest.mark.filterwarnings(
    "ignore:y_pred contains classes not in y_true", "ignore:The y_proba values do not sum to one"
)
@pytest.mark.parametrize("case", CASES)
def test_later_metrics_are_scikit_learns(case):
    probs, targets = predictions(**CASES[case])
    metrics, by_class = compute_metrics(probs, targets)
    num_classes, predicted = probs.shape[1], probs.argmax(1)
    truth = np.arange(num_classes) == targets.numpy()[:, None]
    assert same(metrics["kappa"], sklearn_metrics.cohen_kappa_score(targets, predicted))
    assert same(metrics["mcc"], sklearn_metrics.matthews_corrcoef(targets, predicted))
    if case != "ties":  # rounded probabilities do not add up to 1, and scikit-learn scales them
        scores = probs.numpy() if num_classes > 2 else probs[:, 1].numpy()
        expected = sklearn_metrics.brier_score_loss(targets.numpy(), scores, labels=range(num_classes))
        assert same(metrics["brier"], expected)
    precisions = [
        sklearn_metrics.average_precision_score(truth[:, k], probs[:, k]) if truth[:, k].any() else np.nan
        for k in range(num_classes)
    ]
    assert same(by_class["average_precision"], precisions)
    assert same(metrics["average_precision"], np.nanmean(precisions))
    for name, specificity in SPECIFICITIES.items():
        sensitivities = []
        for k in range(num_classes):
            if not truth[:, k].any():
                sensitivities.append(np.nan)
                continue
            fpr, tpr, _ = sklearn_metrics.roc_curve(truth[:, k], probs[:, k], drop_intermediate=False)
            sensitivities.append(tpr[1 - fpr >= specificity - 1e-9].max())
        assert same(by_class[name], sensitivities)
        assert same(metrics[name], np.nanmean(sensitivities))


def test_a_specificity_that_is_met_exactly_counts():
    """Of 20 negatives, 2 score above half of the positives, and 1 above a quarter of them."""
    scores = torch.tensor([0.95, 0.90, 0.85, 0.80, 0.75, 0.70, *torch.linspace(0.1, 0.5, 18)], dtype=torch.float64)
    targets = torch.tensor([1, 0, 1, 0, 1, 1, *[0] * 18])
    _, by_class = compute_metrics(torch.stack([1 - scores, scores], dim=1), targets)
    assert by_class["sensitivity_at_90_specificity"][1] == 1
    assert by_class["sensitivity_at_95_specificity"][1] == 0.5


def test_calibration_error_is_that_of_the_predicted_class_in_15_bins():
    probs, targets = predictions(num_classes=3, images=2000)
    probs[:50] = torch.eye(3, dtype=torch.float64)[torch.arange(50) % 3]  # certain, as saturated networks are
    confidence, hit = probs.amax(1).numpy(), (probs.argmax(1) == targets).numpy()
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs(hit[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    metrics, _ = compute_metrics(probs, targets)
    assert same(metrics["ece"], expected)


@pytest.mark.filterwarnings("error")
def test_one_class_alone_is_measured_without_a_warning():
    metrics, _ = compute_metrics(torch.tensor([[0.9, 0.1]] * 3, dtype=torch.float64), torch.tensor([0, 0, 0]))
    assert (metrics["accuracy"], metrics["kappa"], metrics["mcc"]) == (1, None, 0)


def test_what_is_undefined_is_none():
    probs, _ = predictions()
    metrics, by_class = compute_metrics(probs, torch.full((len(probs),), 3))
    assert metrics["auroc"] is None and by_class["auroc"] == [None] * 7
    intervals, of_classes = bootstrap_intervals(probs, torch.full((len(probs),), 3), resamples=10)
    assert intervals["auroc"] is None and of_classes["auroc"] == [None] * 7
    assert intervals["accuracy"][0] <= metrics["accuracy"] <= intervals["accuracy"][1]


@pytest.mark.parametrize("case", CASES)
def test_a_resample_is_measured_as_if_its_images_stood_there(case):
    probs, targets = predictions(**CASES[case])
    drawn = torch.randint(len(targets), (3, len(targets)), generator=torch.Generator().manual_seed(1))
    times = torch.stack([row.bincount(minlength=len(targets)) for row in drawn])
    metrics, by_class = weighted_metrics(probs, targets)(times.double())
    for i, row in enumerate(drawn):
        expected, of_classes = compute_metrics(probs[row], targets[row])
        assert same([metrics[name][i] for name in METRICS], [expected[name] for name in METRICS])
        assert same([by_class[name][i].tolist() for name in CLASS_METRICS], [of_classes[n] for n in CLASS_METRICS])


def test_intervals_bracket_the_figures_repeat_and_have_the_width_of_theory():
    probs, targets = predictions(images=1500)
    metrics, by_class = compute_metrics(probs, targets)
    intervals, of_classes = bootstrap_intervals(probs, targets, resamples=1000)
    for name in METRICS:
        assert intervals[name][0] < metrics[name] < intervals[name][1]
    for name in CLASS_METRICS:
        for value, (lower, upper) in zip(by_class[name], of_classes[name], strict=True):
            assert lower < value < upper
    accuracy = metrics["accuracy"]
    width = 2 * 1.96 * (accuracy * (1 - accuracy) / 1500) ** 0.5
    assert intervals["accuracy"][1] - intervals["accuracy"][0] == pytest.approx(width, rel=0.1)
    assert bootstrap_intervals(probs, targets, resamples=1000) == (intervals, of_classes)
    assert bootstrap_intervals(probs, targets, resamples=1000, seed=1) != (intervals, of_classes)


# Over groups


def repeat(times, **case):
    """Random predictions in which each image stands several times, as a group, one behind the other."""
    probs, targets = predictions(**case)
    groups = [str(i) for i in range(len(targets)) for _ in range(times)]
    return probs.repeat_interleave(times, 0), targets.repeat_interleave(times), groups


def width(interval):
    return interval[1] - interval[0]


def test_intervals_over_groups_are_those_of_a_plain_bootstrap():
    probs, targets = predictions(num_classes=3, images=60)
    numbers = torch.randint(17, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    intervals, of_classes = bootstrap_intervals(probs, targets, [f"patient {i}" for i in numbers], resamples=60, seed=5)
    groups = list(dict.fromkeys(numbers))
    drawn = torch.randint(len(groups), (60, len(groups)), generator=torch.Generator().manual_seed(5))
    found = []
    for row in drawn.tolist():
        images = [i for g in row for i in range(60) if numbers[i] == groups[g]]
        found.append(compute_metrics(probs[images], targets[images]))
    bounds = [2.5, 97.5]
    for name in METRICS:
        assert same(intervals[name], np.nanpercentile([overall[name] for overall, _ in found], bounds))
    for name in CLASS_METRICS:
        values = np.array([by_class[name] for _, by_class in found], dtype=float)
        assert same(of_classes[name], np.nanpercentile(values, bounds, axis=0).T)


def test_groups_of_one_image_each_are_images():
    probs, targets = predictions(images=50)
    groups = [f"patient {i}" for i in range(50)]
    assert bootstrap_intervals(probs, targets, groups, resamples=200) == bootstrap_intervals(
        probs, targets, resamples=200
    )


@pytest.mark.parametrize("times", [4, 9])
def test_groups_of_equal_images_widen_intervals_by_the_root_of_their_number(times):
    probs, targets, groups = repeat(times, num_classes=3, images=300)
    over_groups, _ = bootstrap_intervals(probs, targets, groups, resamples=1000)
    over_images, _ = bootstrap_intervals(probs, targets, resamples=1000)
    of_one_each, _ = bootstrap_intervals(probs[::times], targets[::times], resamples=1000)
    for name in METRICS:
        assert same(over_groups[name], of_one_each[name])
        if name != "ece":  # its noise is in its value, too
            assert width(over_groups[name]) / width(over_images[name]) == pytest.approx(times**0.5, rel=0.15)


def test_each_resample_draws_as_many_groups_as_there_are_whole():
    groups = ["a", "b", "a", "c", "c", "c"]
    weights = torch.cat(list(draw_weights(6, 300, groups=groups)))
    assert weights.shape == (300, 6)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 3:] == weights[:, 3:4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all() and len(weights[:, [0, 1, 3]].unique(dim=0)) == 10
