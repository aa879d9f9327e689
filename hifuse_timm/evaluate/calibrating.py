"""An evaluation of calibrated probabilities, on images that the calibration was not fitted on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..calibration import Calibration, checksum_names, read_calibration
from ..operating_points import measure_calibration

__all__ = ["measure_calibrated", "read_calibration_of_others"]

_logger = logging.getLogger(__name__)


def read_calibration_of_others(path: str | Path, files: Sequence[str], dataset: str | None, split: str) -> Calibration:
    """Read a calibration to measure on these images, which it must not be fitted on.

    One that was fitted on a split of this name of the same dataset, of whatever images, is logged as a warning.

    Args:
        path: What `calibrate` wrote.
        files: The images, as paths in their dataset.
        dataset: The dataset's name; None where it has none.
        split: The split that they are of.

    Raises:
        ValueError: If it is no calibration, or was fitted on these images.
        OSError: If it cannot be read.
    """
    calibration = read_calibration(path)
    fitted_on = calibration.content["fitted_on"]
    if fitted_on["images"] == checksum_names(files):
        raise ValueError(
            f"calibration {path} was fitted on these images, of the split {split}, and would be measured too well on "
            "them: expected others, as of --split test"
        )
    if fitted_on["split"] == split and fitted_on["dataset"] in (dataset, None):
        _logger.warning(
            f"calibration {path} was fitted on a split {split}, as this is: on images that it was fitted on it is "
            "measured too well"
        )
    return calibration


def measure_calibrated(
    calibration: Calibration,
    probs: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> dict:
    """What a calibration is, and what was measured of it on images, as results have it.

    Args:
        calibration: A calibration of this network.
        probs: Probability of each class for each image, (N, K), of the network.
        targets: Class index of each image, (N,).
        groups: Name of each image's group, which the bootstrap draws; None to draw images.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """
    names = ("temperature", "temperature_interval", "thresholds", "undecided_below")
    return dict(
        checksum=calibration.checksum,
        **{name: calibration.content[name] for name in names},
        measured=measure_calibration(calibration, probs, targets, groups, resamples=resamples, seed=seed),
    )
