"""Fitting a calibration to predictions of validation images: temperature, thresholds, a bound for deciding.

Needs the extra `medical`.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import torch

from ..bootstrap import check_resampling, count_groups, draw_weights, percentile_interval
from ..calibration import TEMPERATURES, UNDECIDED, Calibration, checksum_names
from ..errors import require, shorten
from ..fields import CHECKSUM, TEXT, check_fields, or_null
from ..files import sha256
from ..operating_points import measure_calibration
from ..predictions import Predictions, read_predictions
from ..runs import read_run
from ..text import abbreviate
from ..version import __version__
from .temperature import fit_temperature, weighted_temperature
from .thresholds import Aim, find_bound, weighted_threshold

__all__ = ["calibrate"]

_logger = logging.getLogger(__name__)

_LEVEL = 0.95

# How images reach a network, as timm names the settings and runs have them.
_TRANSFORM = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def calibrate(
    predictions: str | Path,
    run: str | Path | None = None,
    *,
    sensitivity: Iterable[tuple[str, float]] = (),
    specificity: Iterable[tuple[str, float]] = (),
    youden: Iterable[str] | None = None,
    undecided_below: float | None = None,
    undecided_share: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """Fit a calibration to predictions of images that were not trained on, and that nothing is measured on later.

    The temperature is that of greatest likelihood. The threshold of a class is chosen on the calibrated probabilities,
    the class against the rest. What else should be known of the predictions, and is not, is logged as a warning.

    Args:
        predictions: Table that `evaluate --predictions` wrote of the validation images.
        run: What `evaluate --json` wrote in the same run, which says of which weights and split the predictions are.
        sensitivity: Classes and the sensitivity that the threshold of each is to reach, the highest that does.
        specificity: Classes and the specificity that the threshold of each is to reach, the lowest that does.
        youden: Classes whose threshold has the greatest Youden index, sensitivity + specificity - 1; by default all,
            where the other two name none.
        undecided_below: Bound of the greatest calibrated probability of an image, under which it decides nothing.
        undecided_share: Share of the validation images that the bound leaves undecided at most, in its place.
        resamples: Resamples of the bootstrap, over groups where the predictions name them.
        seed: Seed of the bootstrap; all else is deterministic.

    Returns:
        What `read_calibration` reads, once it is written as JSON.

    Raises:
        ValueError: If an argument is not valid, the predictions are no such table, lack true classes, or all images of
            a class, are of test images, are not those of the run or are calibrated already, say nothing of the true
            classes, or a specificity is never reached.
        OSError: If a file cannot be read.
        RuntimeError: If a library is missing.
    """
    scipy = require("scipy", "medical")
    check_resampling(resamples)
    table = _without_zeros(read_predictions(predictions), predictions)
    _check_truth(table, predictions)
    fitted_on = _find_origin(table, predictions, run)
    aims = _find_aims(table.classes, sensitivity, specificity, youden)
    _check_bound(table.classes, undecided_below, undecided_share)

    temperature = _find_temperature(table, predictions)
    calibration = Calibration(tuple(table.classes), temperature or 1.0)
    calibrated = calibration.apply(table.probs)
    choices = {
        name: weighted_threshold(calibrated[:, k], table.targets == k, aims[name])
        for k, name in enumerate(table.classes)
        if name in aims
    }
    calibration = replace(
        calibration,
        thresholds={name: _choose(choice, table, name, aims[name]) for name, choice in choices.items()},
        undecided_below=undecided_below if undecided_share is None else find_bound(calibrated.amax(1), undecided_share),
    )
    bootstrap = dict(groups=table.groups, resamples=resamples, seed=seed)
    fits = [weighted_temperature(table.probs, table.targets), *choices.values()]
    temperature_interval, *threshold_intervals = _find_intervals(fits, len(table.files), **bootstrap)
    return dict(
        kind="calibration",
        classes=table.classes,
        temperature=calibration.temperature,
        temperature_interval=None if temperature is None else temperature_interval,
        thresholds={
            name: dict(aim=aims[name].name, wanted=aims[name].wanted, threshold=threshold, threshold_interval=interval)
            for (name, threshold), interval in zip(calibration.thresholds.items(), threshold_intervals, strict=True)
        },
        undecided_below=calibration.undecided_below,
        measured=measure_calibration(calibration, table.probs, table.targets, **bootstrap, level=_LEVEL),
        intervals=dict(
            level=_LEVEL, unit="images" if table.groups is None else "groups", resamples=resamples, seed=seed
        ),
        counts=dict(images=len(table.files), groups=None if table.groups is None else count_groups(table.groups)),
        fitted_on=fitted_on,
        versions=dict(hifuse_timm=__version__, torch=torch.__version__, scipy=scipy.__version__),
    )


def _without_zeros(table: Predictions, path: str | Path) -> Predictions:
    """Predictions with the smallest probability that is above 0 where one is 0, which is logged.

    A 0 is a number that was rounded; taken as it is, one of a true class would decide the temperature alone.
    """
    is_zero = table.probs == 0
    if not is_zero.any():
        return table
    smallest = table.probs[~is_zero].min()
    _logger.warning(
        f"predictions {path} have probabilities of exactly 0 for {is_zero.any(1).sum()} images: they are taken as "
        f"{smallest:.3g}, the smallest one above 0, and the temperature is no better than that"
    )
    return replace(table, probs=table.probs.clamp(min=smallest))


def _check_truth(table: Predictions, path: str | Path) -> None:
    """Check that there are images of each class."""
    if table.targets is None:
        raise ValueError(
            f"predictions {path} have no column class, of the true class of each image: expected what evaluate "
            "--predictions writes"
        )
    counts = table.targets.bincount(minlength=len(table.classes)).tolist()
    if missing := [name for name, count in zip(table.classes, counts, strict=True) if count == 0]:
        raise ValueError(f"predictions {path} have no images of {shorten(missing)}: expected some of each class")


def _find_origin(table: Predictions, path: str | Path, run: str | Path | None) -> dict:
    """What predictions are of, as far as that is known: network, dataset and split, which must not be test."""
    checksum = sha256(Path(path))
    origin = dict.fromkeys(("weights", "transform", "model", "checkpoint", "dataset"))
    split = _find_split(table)
    if run is None:
        _logger.warning(
            "no run is given (--run), the file that evaluate --json wrote beside the predictions: of which weights the "
            "calibration is, and whether the predictions are calibrated already, is not known"
        )
    else:
        content = _read_run(Path(run), path, checksum)
        split, conditions = content["split"], content["conditions"]
        checkpoint = conditions["checkpoint"]
        origin |= dict(
            weights=conditions["weights"],
            transform={key: conditions[key] for key in _TRANSFORM if key in conditions},
            model=content["architecture"],
            checkpoint=None if checkpoint is None else Path(checkpoint).name,  # its folder is nobody else's business
            dataset=content["dataset"],
        )
    if split == "test":
        raise ValueError(
            f"predictions {path} are of the split test, on which nothing may be chosen: expected those of evaluate "
            "--split val"
        )
    if split != "val":
        known = "it is not known of which split they are" if split is None else f"they are of the split {split}"
        _logger.warning(
            f"predictions {path} should be of the split val, or of images that are neither trained on nor "
            f"measured on: {known}"
        )
    return dict(predictions=checksum, images=checksum_names(table.files), **origin, split=split)


def _read_run(path: Path, predictions: str | Path, checksum: str) -> dict:
    content = read_run(path)
    if content.get("calibration") is not None:
        raise ValueError(f"run {path} is calibrated already: expected one of evaluate without --calibration")
    fields = {"predictions": CHECKSUM, "conditions": {"weights": CHECKSUM, "checkpoint": or_null(TEXT)}}
    check_fields(content, fields, f"run {path}", "evaluate writes")
    if content["predictions"] != checksum:
        raise ValueError(
            f"predictions {predictions} are not those of run {path}, or were changed since: expected what evaluate "
            "writes with --predictions and --json"
        )
    return content


def _find_split(table: Predictions) -> str | None:
    """The split that the paths of all images name, as SPLIT/CLASS/NAME; None where they name none, or several."""
    found = []
    for file, target in zip(table.files, table.targets.tolist(), strict=True):
        folders = PurePath(file).parts[:-1]
        found.append(
            {split for split, name in zip(folders, folders[1:], strict=False) if name == table.classes[target]}
        )
    common = set.intersection(*found)
    return common.pop() if len(common) == 1 else None


def _find_aims(
    classes: Sequence[str],
    sensitivity: Iterable[tuple[str, float]],
    specificity: Iterable[tuple[str, float]],
    youden: Iterable[str] | None,
) -> dict[str, Aim]:
    """What the threshold of each class is chosen by, of those that get one."""
    given = [
        *((name, Aim("sensitivity", wanted)) for name, wanted in sensitivity),
        *((name, Aim("specificity", wanted)) for name, wanted in specificity),
        *((name, Aim("youden")) for name in youden or ()),
    ]
    for i, (name, aim) in enumerate(given):
        if name not in classes:
            raise ValueError(f"{aim.name}: {abbreviate(name, 80)} is no class, expected one of {shorten(classes)}")
        if name in dict(given[:i]):
            raise ValueError(f"{aim.name}: {abbreviate(name, 80)} has a threshold already: expected one for a class")
        if aim.wanted is not None and not 0 < aim.wanted <= 1:
            raise ValueError(f"{aim.name} {aim.wanted:g} of {abbreviate(name, 80)} is not over 0 and up to 1")
    return {name: Aim("youden") for name in classes} if youden is None and not given else dict(given)


def _check_bound(classes: Sequence[str], below: float | None, share: float | None) -> None:
    if below is not None and share is not None:
        raise ValueError("undecided_below and undecided_share are both given: expected one of them")
    if below is not None and not 0 < below <= 1:
        raise ValueError(f"undecided_below {below:g} is not over 0 and up to 1")
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"undecided_share {share:g} is not from 0 to under 1")
    if UNDECIDED in classes and (below, share) != (None, None):
        raise ValueError(f"a class is called {UNDECIDED}, as images without a decision are: rename it")


def _find_temperature(table: Predictions, path: str | Path) -> float | None:
    """The temperature, or None, which is logged, where there is none of the greatest likelihood."""
    temperature = fit_temperature(table.probs, table.targets)
    if temperature is None:
        _logger.warning(
            f"the likelihood of predictions {path} grows down to a temperature of {TEMPERATURES[0]:g}, the least, as "
            "where all images are classified right: the temperature stays 1, and the probabilities as they are"
        )
    return temperature


def _choose(choice: Callable[[torch.Tensor], torch.Tensor], table: Predictions, name: str, aim: Aim) -> float:
    """The threshold of a class for the images as they are."""
    threshold = choice(torch.ones(1, len(table.files), dtype=torch.float64)).item()
    if math.isnan(threshold):
        raise ValueError(
            f"{aim.name} {aim.wanted:g} of {abbreviate(name, 80)} is not reached: too many images of other classes "
            "have the highest probability of it; ask for less"
        )
    return threshold


def _find_intervals(
    fits: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    num_images: int,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> list[list[float] | None]:
    """The interval of what each function finds in resamples."""
    draws = draw_weights(num_images, resamples, seed, groups)
    found = torch.cat([torch.stack([fit(times) for fit in fits]) for times in draws], dim=1)  # fits R
    return [percentile_interval(values, _LEVEL) for values in found]
