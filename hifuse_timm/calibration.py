"""Calibrated probabilities and decisions on them, by a file that `calibrate` wrote.

A temperature T turns a network's logits z into the probabilities softmax(z / T) (Guo et al. 2017). The probabilities
p of T = 1 are enough for that: log p are the logits but for a constant, which softmax takes out.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from .errors import shorten
from .fields import (
    CHECKSUM,
    COUNT,
    FRACTION,
    OBJECT,
    TEXT,
    between,
    check_fields,
    interval_of,
    or_null,
    read_object,
)
from .files import sha256
from .text import abbreviate

__all__ = [
    "AIMS",
    "TEMPERATURES",
    "UNDECIDED",
    "Calibration",
    "check_measured",
    "check_rules",
    "checksum_names",
    "log_probabilities",
    "mean_loss",
    "read_calibration",
]

_logger = logging.getLogger(__name__)

AIMS = ("sensitivity", "specificity", "youden")  # what a threshold may be chosen by
TEMPERATURES = (0.01, 100.0)  # the least and the greatest: networks have 0.3 to 5
UNDECIDED = "undecided"

_WRITER = "calibrate writes"
_EXAMPLE = '{"kind": "calibration", "temperature": 1.5, ...}, as calibrate writes it'


def _are_classes(value: object) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return names and len(value) > 1 and len(set(value)) == len(value)


_LOSS = between(0, 1e6)
_IS_NULL = "null", lambda value: value is None
_QUALITY = dict(nll=_LOSS, ece=FRACTION, brier=_LOSS)
_FIELDS_OF_RULES = {
    "temperature": between(*TEMPERATURES),
    "temperature_interval": interval_of(between(*TEMPERATURES)),
    "thresholds": OBJECT,
    "undecided_below": or_null(FRACTION),
}
_FIELDS = {
    "classes": ("a list of two names or more, none of them twice", _are_classes),
    **_FIELDS_OF_RULES,
    "intervals": {"level": FRACTION, "unit": TEXT},
    "counts": {"images": COUNT, "groups": or_null(COUNT)},
    "fitted_on": {
        "predictions": CHECKSUM,
        "images": CHECKSUM,
        "weights": or_null(CHECKSUM),
        "transform": or_null(OBJECT),
        **dict.fromkeys(("model", "checkpoint", "dataset", "split"), or_null(TEXT)),
    },
}
_FIELDS_OF_THRESHOLD = {
    "aim": (f"one of {', '.join(AIMS)}", lambda value: value in AIMS),
    "wanted": or_null(FRACTION),
    "threshold": FRACTION,
    "threshold_interval": interval_of(FRACTION),
}


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what is decided by the probabilities at that temperature.

    Attributes:
        classes: Names of the classes, in the order of the probabilities.
        temperature: What the logits are divided by.
        thresholds: Of classes that have one, the probability from which on an image is positive for the class.
        undecided_below: The bound under which the greatest probability of an image decides nothing; None for no bound.
        content: All that its file says, as `calibrate` writes it.
        path: The file; None of one that was not read from any.
        checksum: SHA-256 of the file.
    """

    classes: tuple[str, ...]
    temperature: float
    thresholds: dict[str, float] = field(default_factory=dict)
    undecided_below: float | None = None
    content: dict = field(default_factory=dict)
    path: Path | None = None
    checksum: str | None = None

    def matched_to(self, classes: Sequence[str], weights: Sequence[str], transforms: Sequence[dict]) -> "Calibration":
        """The same for probabilities of classes in this order, once it is checked that it is of this network.

        Where the calibration does not say of which weights it is, or is of images at other settings, that is logged as
        a warning.

        Args:
            classes: Names of the classes.
            weights: Checksum of the weights of each network whose probabilities are averaged.
            transforms: How images reach each of them, as timm names the settings.

        Raises:
            ValueError: If it is of other classes, or of other weights.
        """
        if set(classes) != set(self.classes):
            raise ValueError(
                f"calibration {self.path} has the classes {shorten(self.classes)}, the network has {shorten(classes)}: "
                "expected a calibration of this network"
            )
        fitted_on = self.content["fitted_on"]
        if fitted_on["weights"] is None:
            _logger.warning(
                f"calibration {self.path} does not say of which weights it is: whether it is of these cannot be known"
            )
        elif list(weights) != [fitted_on["weights"]]:
            raise ValueError(
                f"calibration {self.path} was fitted on the probabilities of one network with other weights "
                f"({self._describe_network()}): expected a calibration of these, as calibrate makes of predictions and "
                "run of the same evaluate"
            )
        for transform in json.loads(json.dumps(transforms)):  # has lists for tuples, as the file has
            for key, value in (fitted_on["transform"] or {}).items():
                if transform.get(key) != value:
                    _logger.warning(
                        f"calibration {self.path} was fitted on images at {abbreviate(key, 40)} "
                        f"{abbreviate(value, 80)}, and these are at {transform.get(key)}: probabilities may be off"
                    )
        return replace(self, classes=tuple(classes))

    def _describe_network(self) -> str:
        fitted = self.content["fitted_on"]
        names = [abbreviate(fitted[key], 80) for key in ("model", "checkpoint") if fitted[key] is not None]
        return ", ".join([*names, f"SHA-256 {fitted['weights'][:12]}..."])

    def apply(self, probs: torch.Tensor) -> torch.Tensor:
        """The probabilities at the temperature, (N, K) in float64, of those of the network, (N, K).

        A probability of exactly 0 is taken for the smallest one above 0 that there is.
        """
        return (log_probabilities(probs) / self.temperature).softmax(1)

    def is_positive(self, calibrated: torch.Tensor) -> torch.Tensor:
        """Whether images are positive for each of `thresholds`, (N, T), by calibrated probabilities, (N, K)."""
        columns = [self.classes.index(name) for name in self.thresholds]
        return calibrated[:, columns] >= torch.tensor(list(self.thresholds.values()), dtype=calibrated.dtype)

    def is_decided(self, calibrated: torch.Tensor) -> torch.Tensor:
        """Whether the greatest of calibrated probabilities, (N, K), reaches the bound, if there is one; (N,)."""
        return calibrated.amax(1) >= (self.undecided_below or 0)

    def name_columns(self) -> list[str]:
        """The columns of a table that `write_cells` fills: those for decisions."""
        decision = [] if self.undecided_below is None else ["decision"]
        return [*(f"positive_{name}" for name in self.thresholds), *decision]

    def write_cells(self, calibrated: torch.Tensor) -> list[str]:
        """What is decided of an image by its calibrated probabilities, (K,).

        1 or 0 for each threshold; and the predicted class, or `UNDECIDED`, where there is a bound.
        """
        image = calibrated[None]
        cells = [str(int(positive)) for positive in self.is_positive(image)[0]]
        if self.undecided_below is not None:
            cells.append(self.classes[calibrated.argmax()] if self.is_decided(image)[0] else UNDECIDED)
        return cells


def log_probabilities(probs: torch.Tensor) -> torch.Tensor:
    """Logarithms in float64, of 0 that of the smallest number above it."""
    return probs.double().clamp(min=torch.finfo(torch.float64).tiny).log()


def mean_loss(probs: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of the true classes at a temperature.

    Args:
        probs: Probability of each class for each image, (N, K).
        targets: Class index of each image, (N,).
        temperature: What the logarithms of the probabilities are divided by.
    """
    return cross_entropy(log_probabilities(probs) / temperature, targets).item()


def checksum_names(files: Iterable[str]) -> str:
    """SHA-256 of the names of images, in whatever order they are."""
    return hashlib.sha256("\n".join(sorted(files)).encode("utf-8", "surrogateescape")).hexdigest()


def check_measured(content: dict, calibration: dict, what: str, within: str, writer: str) -> None:
    """Check `measured` in an object, what was measured of a calibration.

    Args:
        content: The object.
        calibration: What the calibration is, as `calibrate` writes it.
        what: What the object is in, as errors begin.
        within: What stands in front of the field's name in errors.
        writer: The command, and a verb, that writes such objects.

    Raises:
        ValueError: If it is missing or anything else; names the field that is wrong.
    """
    fields = {
        "before": _QUALITY,
        "after": _QUALITY,
        "thresholds": dict.fromkeys(calibration["thresholds"], _rates_of("sensitivity", "specificity")),
        "undecided": _IS_NULL if calibration["undecided_below"] is None else _rates_of("share", "accuracy"),
    }
    check_fields(content, {"measured": fields}, what, writer, within)


def check_rules(content: dict, what: str, within: str, writer: str) -> None:
    """Check what a calibration is, and what was measured of it, in an object.

    Args:
        content: The object.
        what: What it is in, as errors begin.
        within: What stands in front of the fields' names in errors.
        writer: The command, and a verb, that writes such objects.

    Raises:
        ValueError: If a field is missing or anything else; names it.
    """
    check_fields(content, _FIELDS_OF_RULES, what, writer, within)
    for name, threshold in content["thresholds"].items():
        check_fields({name: threshold}, {name: _FIELDS_OF_THRESHOLD}, what, writer, f"{within}thresholds.")
    check_measured(content, content, what, within, writer)


def _rates_of(*names: str) -> dict:
    rates = dict.fromkeys(names, or_null(FRACTION))
    return rates | {"intervals": dict.fromkeys(names, interval_of(FRACTION))}


def read_calibration(path: str | Path) -> Calibration:
    """Read what `calibrate` wrote.

    Raises:
        ValueError: If it is anything else; names the field that is missing or wrong.
        OSError: If it cannot be read.
    """
    path = Path(path)
    what = f"calibration {path}"
    content = read_object(path, f"{what} is", _EXAMPLE)
    if content.get("kind") != "calibration":
        raise ValueError(f"{what} is no calibration: expected a file that calibrate wrote")
    check_fields(content, _FIELDS, what, _WRITER)
    if unknown := [name for name in content["thresholds"] if name not in content["classes"]]:
        raise ValueError(f"{what} has a threshold for {shorten(unknown)}, expected some of its classes")
    check_rules(content, what, "", _WRITER)
    return Calibration(
        classes=tuple(content["classes"]),
        temperature=float(content["temperature"]),
        thresholds={name: float(of_class["threshold"]) for name, of_class in content["thresholds"].items()},
        undecided_below=content["undecided_below"],
        content=content,
        path=path,
        checksum=sha256(path),
    )
