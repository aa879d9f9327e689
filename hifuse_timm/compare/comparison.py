"""Differences between networks on the same images, with paired intervals and tests.

Needs the extra `medical`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..bootstrap import check_resampling, count_groups, draw_weights, percentile_interval, weighted_metrics
from ..errors import require, shorten
from ..metrics import as_number
from ..predictions import Predictions, align, read_predictions
from .significance import delong_test, holm, mcnemar_exact

__all__ = ["COMPARED", "compare", "compare_metrics"]

COMPARED = ("accuracy", "balanced_accuracy", "f1", "auroc")


def compare(files: Sequence[str | Path], *, resample: str | None = None, resamples: int = 2000, seed: int = 0) -> dict:
    """Compare networks with the first of them, on the same images.

    The differences of `COMPARED` have paired bootstrap intervals: all networks are measured on the same resamples, of
    groups with all their images where the tables name groups. McNemar's exact test is of the accuracies; DeLong's, for
    two classes, of the areas under the ROC curves. Both take images as independent. Where there are several networks
    beside the first, p-values are corrected by Holm's method within each of the tests.

    Args:
        files: Tables of predictions as `evaluate` or `predict` writes them, two or more. True classes and groups that
            one of them has are those of all.
        resample: What the bootstrap draws, `groups` or `images`; by default groups where there are some.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        What `compare --json` writes: `networks` has for each file its metrics, and for each but the first the
        differences from the first, `mcnemar` and `delong`.

    Raises:
        ValueError: If an argument is not valid, or the tables are not of the same images and classes, or name no true
            classes.
        OSError: If a file cannot be read.
    """
    require("torchmetrics", "medical")
    if len(files) < 2:
        raise ValueError(f"predictions: {len(files)} given, expected two or more")
    check_resampling(resamples, resample)
    names = list(map(str, files))
    tables = align([read_predictions(name) for name in names], names)
    targets = tables[0].targets
    if targets is None:
        raise ValueError(
            f"none of {shorten(names)} has the true classes: expected a column class in one, as evaluate writes it"
        )
    groups = _choose_groups(tables[0].groups, resample, names)
    intervals = dict(level=0.95, unit="images" if groups is None else "groups", resamples=resamples, seed=seed)
    if groups is not None:
        intervals["groups"] = count_groups(groups)
    measured = compare_metrics(
        [table.probs for table in tables], targets, groups, resamples=resamples, seed=seed, level=intervals["level"]
    )
    networks = [dict(file=name, **of_network) for name, of_network in zip(names, measured, strict=True)]
    _add_tests(networks, tables)
    return dict(
        kind="comparison",
        counts=dict(images=len(targets), classes=len(tables[0].classes)),
        intervals=intervals,
        independent=tables[0].groups is None or len(set(tables[0].groups)) == len(targets),
        networks=networks,
    )


def compare_metrics(
    probs: Sequence[torch.Tensor],
    targets: torch.Tensor,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[dict]:
    """The metrics of networks, and their differences from the first one's, with paired bootstrap intervals.

    Args:
        probs: Of each network the probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        groups: Name of each image's group, (N,), which the bootstrap draws; None to draw images.
        resamples: Resamples of the bootstrap, the same ones for all networks.
        seed: Seed of the bootstrap.
        level: Share of the resamples within an interval.

    Returns:
        For each network its `metrics`, and but for the first its `differences`: of each of `COMPARED` the `value` and
        the `interval`, None where undefined.
    """
    measures = [weighted_metrics(of_network, targets) for of_network in probs]

    def measure(times: torch.Tensor) -> torch.Tensor:
        overall = [of_network(times)[0] for of_network in measures]
        return torch.stack([torch.stack([metrics[name] for name in COMPARED]) for metrics in overall])

    values = measure(torch.ones(1, len(targets), dtype=torch.float64))[:, :, 0]  # networks metrics
    parts = [measure(times) for times in draw_weights(len(targets), resamples, seed, groups)]
    drawn = torch.cat(parts, dim=2)  # networks metrics R

    def describe(values: torch.Tensor, drawn: torch.Tensor) -> dict[str, dict]:
        return {
            name: dict(value=as_number(values[m]), interval=percentile_interval(drawn[m], level))
            for m, name in enumerate(COMPARED)
        }

    return [
        dict(metrics=describe(values[i], drawn[i]))
        | (dict(differences=describe(values[i] - values[0], drawn[i] - drawn[0])) if i else {})
        for i in range(len(probs))
    ]


def _choose_groups(groups: list[str] | None, resample: str | None, names: list[str]) -> list[str] | None:
    """The groups that the bootstrap draws, None for images."""
    if resample == "groups" and groups is None:
        raise ValueError(
            f"resample groups: none of {shorten(names)} has a column group, as evaluate writes it where splits.csv "
            "names groups"
        )
    several = groups is not None and len(set(groups)) < len(groups)
    return groups if resample == "groups" or (resample is None and several) else None


def _add_tests(networks: list[dict], tables: Sequence[Predictions]) -> None:
    """Add to each network but the first the tests of whether it differs from that."""
    targets, first = tables[0].targets, tables[0]
    is_right = [table.probs.argmax(1) == targets for table in tables]
    for network, table, right in zip(networks[1:], tables[1:], is_right[1:], strict=True):
        only_first, only_this = (is_right[0] & ~right).sum().item(), (right & ~is_right[0]).sum().item()
        network["mcnemar"] = dict(only_first=only_first, only_this=only_this, p=mcnemar_exact(only_first, only_this))
        tested = delong_test(table.probs[:, 1], first.probs[:, 1], targets == 1) if len(table.classes) == 2 else None
        network["delong"] = tested and dict(
            difference=tested.difference, interval=list(tested.interval), z=tested.z, p=tested.p
        )
    for test in ("mcnemar", "delong"):
        done = [network[test] for network in networks[1:] if network[test]]
        for of_network, p in zip(done, holm([of_network["p"] for of_network in done]), strict=True):
            of_network["p_holm"] = p
