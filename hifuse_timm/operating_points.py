"""What a calibration does on images whose classes are known: probabilities before and after, and its decisions."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import one_hot

from .bootstrap import draw_weights, percentile_interval
from .calibration import Calibration, mean_loss
from .metrics import compute_metrics
from .tables import format_interval, format_percent, format_table
from .text import abbreviate

__all__ = ["describe_temperature", "format_calibration", "measure_calibration", "tabulate_calibration"]


def measure_calibration(
    calibration: Calibration,
    probs: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict:
    """Measure a calibration, its thresholds taken as they are.

    Args:
        calibration: A calibration of these classes in this order.
        probs: Probability of each class for each image, (N, K), of the network.
        targets: Class index of each image, (N,).
        groups: Name of each image's group, (N,); None to resample images.
        resamples: Number of resamples.
        seed: Seed of the draw.
        level: Share of the resamples within an interval.

    Returns:
        `before` and `after`: negative log-likelihood, expected calibration error and Brier score. `thresholds`: by
        class the sensitivity and specificity, None where there are no images for one, with their intervals.
        `undecided`: the share of images under the bound and the accuracy of the others, with intervals; None where
        there is no bound.
    """
    calibrated = calibration.apply(probs)
    rates = _weighted_rates(calibration, calibrated, targets)
    values = {name: rate[0].tolist() for name, rate in rates(torch.ones(1, len(targets), dtype=torch.float64)).items()}
    parts = [rates(times) for times in draw_weights(len(targets), resamples, seed, groups)]
    resampled = {name: torch.cat([part[name] for part in parts]) for name in values}

    def describe(names: Sequence[str], column: int) -> dict:
        found = {name: values[name][column] for name in names}
        return dict(
            **{name: round(value, 6) if value == value else None for name, value in found.items()},
            intervals={name: percentile_interval(resampled[name][:, column], level) for name in names},
        )

    return dict(
        before=_measure_probabilities(probs, targets),
        after=_measure_probabilities(calibrated, targets),
        thresholds={name: describe(("sensitivity", "specificity"), i) for i, name in enumerate(calibration.thresholds)},
        undecided=None if calibration.undecided_below is None else describe(("share", "accuracy"), 0),
    )


def _measure_probabilities(probs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    metrics, _ = compute_metrics(probs, targets)
    return dict(nll=round(mean_loss(probs, targets), 6), ece=metrics["ece"], brier=metrics["brier"])


def _weighted_rates(
    calibration: Calibration, calibrated: torch.Tensor, targets: torch.Tensor
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Gives a function of how often each image counts, (R, N), to the rates of decisions, (R, 1 or thresholds)."""
    columns = [calibration.classes.index(name) for name in calibration.thresholds]
    is_own = one_hot(targets, len(calibration.classes))[:, columns].double()  # N T
    is_positive = calibration.is_positive(calibrated).double()
    is_decided = calibration.is_decided(calibrated)[:, None].double()
    is_right = is_decided * (calibrated.argmax(1) == targets)[:, None]

    def measure(times: torch.Tensor) -> dict[str, torch.Tensor]:
        def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
            return times @ part / (times @ whole)  # 0 / 0 is undefined

        return dict(
            sensitivity=share(is_own * is_positive, is_own),
            specificity=share((1 - is_own) * (1 - is_positive), 1 - is_own),
            share=share(1 - is_decided, torch.ones_like(is_decided)),
            accuracy=share(is_right, is_decided),
        )

    return measure


def tabulate_calibration(calibration: dict) -> list[tuple[list[str], list[list[str]]]]:
    """What was measured of a calibration, as headers and rows of tables.

    Args:
        calibration: `thresholds` and `undecided_below` as in a file of `calibrate`, and `measured` of any images.
    """
    measured, interval = calibration["measured"], "95% interval"
    before, after = measured["before"], measured["after"]
    quality = [
        ["calibration error, %", *(format_percent(found["ece"]) for found in (before, after))],
        ["Brier score, %", *(format_percent(found["brier"]) for found in (before, after))],
        ["negative log-likelihood", *(f"{found['nll']:.4f}" for found in (before, after))],
    ]
    tables = [(["probabilities", "before", "after"], quality)]
    if calibration["thresholds"]:
        header = ["class, %", "chosen by", "threshold", interval, "sensitivity", interval, "specificity", interval]
        rows = []
        for name, threshold in calibration["thresholds"].items():
            aim, wanted = threshold["aim"], threshold["wanted"]
            chosen_by = "Youden's index" if wanted is None else f"{aim} {100 * wanted:g}"
            rates = _list_rates(measured["thresholds"][name], "sensitivity", "specificity")
            limits = " - ".join(f"{limit:.4g}" for limit in threshold["threshold_interval"] or ())
            rows.append([name, chosen_by, f"{threshold['threshold']:.4g}", limits, *rates])
        tables.append((header, rows))
    if measured["undecided"] is not None:
        header = ["decision, %", "undecided", interval, "accuracy of the others", interval]
        bound = f"undecided under {calibration['undecided_below']:.4g}"
        tables.append((header, [[bound, *_list_rates(measured["undecided"], "share", "accuracy")]]))
    return tables


def _list_rates(measured: dict, *names: str) -> list[str]:
    """Rates with their intervals in percent, side by side."""
    intervals = measured["intervals"]
    return [cell for name in names for cell in (format_percent(measured[name]), format_interval(intervals[name]))]


def describe_temperature(calibration: dict) -> str:
    """The temperature in words, with its interval where it has one."""
    interval = calibration["temperature_interval"]
    words = "" if interval is None else " (95% interval {:.3f} - {:.3f})".format(*interval)
    return f"temperature {calibration['temperature']:.3f}{words}"


def format_calibration(calibration: dict) -> str:
    """What a calibration is and what was measured of it, as tables for the terminal; see `tabulate_calibration`."""
    tables = [
        format_table(header, [[abbreviate(name, 40), *cells] for name, *cells in rows])
        for header, rows in tabulate_calibration(calibration)
    ]
    return "\n\n".join([describe_temperature(calibration), *tables])
