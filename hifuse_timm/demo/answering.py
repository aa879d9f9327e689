"""What a network makes of a file, as HTML: probabilities, decisions and heat maps. Nothing of it stays on the disk."""

import base64
import binascii
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..calibration import UNDECIDED, Calibration
from ..errors import require
from ..images import open_image, to_data_uri
from ..inference import predict_files
from ..loading import Trained
from ..text import abbreviate, printable

__all__ = ["Answer", "Answerer", "decode_files", "render_template"]

_MOST_CLASSES = 10  # that are shown, the most probable ones
_SIDE = 448  # pixels of a picture's longer side, at most

_ERRORS = (ValueError, OSError, RuntimeError)


@dataclass(frozen=True)
class Answer:
    """What a network makes of a file.

    Attributes:
        name: The file's name.
        fault: Why there is no answer; None where there is one.
        probs: Classes and their probabilities, the greatest first.
        decisions: What is decided by the calibration, in words.
        frame: Of several frames of a DICOM file the one that is taken, as '31 of 60'.
        picture: The image as a data URI.
        heat_maps: Of each layer its name, and its heat map of the predicted class over the image as a data URI; and
            why there is none.
    """

    name: str
    fault: str | None = None
    probs: Sequence[tuple[str, float]] = ()
    decisions: Sequence[str] = ()
    frame: str | None = None
    picture: str | None = None
    heat_maps: Sequence[tuple[str, str | None, str | None]] = ()


@dataclass(frozen=True)
class Answerer:
    """A network that answers for files.

    Attributes:
        network: The network.
        device: Where it is.
        draw_heat_map: Draws the heat map of a class, by its index, at a layer over an image.
        layers: The layers that it is drawn at, the first one unless others are chosen; none for no heat maps.
        calibration: Calibrates the probabilities, matched to the network; None to show them as they are.
    """

    network: Trained
    device: torch.device
    draw_heat_map: Callable[[Image.Image, int, str], Image.Image]
    layers: Sequence[str] = ()
    calibration: Calibration | None = None

    def answer(self, name: str, content: bytes, layers: Sequence[str] = ()) -> Answer:
        """Answer for a file; one that cannot be answered for has a fault.

        Args:
            name: Its name, which is shown and nothing else.
            content: Its bytes, of an image or DICOM.
            layers: Layers to draw heat maps at.
        """
        name = abbreviate(name, 80)
        with tempfile.TemporaryDirectory(prefix="hifuse-timm-") as folder:
            file = Path(folder, "image")
            file.write_bytes(content)
            try:
                predicted = next(predict_files([[str(file)]], [self.network], device=self.device))
                if predicted.faults[0] is not None:
                    raise ValueError(predicted.faults[0])
                image = open_image(file)
            except _ERRORS as e:
                return Answer(name, fault=printable(e).replace(printable(file), name))
        probs = predicted.probs if self.calibration is None else self.calibration.apply(predicted.probs)
        ranked = probs[0].argsort(descending=True, stable=True).tolist()
        return Answer(
            name,
            probs=[(self._name_class(k), probs[0, k].item()) for k in ranked],
            decisions=self._decide(probs),
            frame=image.info.get("frame"),
            picture=to_data_uri(image, _SIDE),
            heat_maps=[self._draw(image, ranked[0], layer) for layer in layers],
        )

    def answer_html(self, files: Sequence[tuple[str, bytes]], layers: Sequence[str] = ()) -> str:
        """The answers for files, by their names and bytes, as HTML."""
        answers = [self.answer(name, content, layers) for name, content in files]
        return render_template("answers.html", answers=answers, most=_MOST_CLASSES, share=_format_share)

    def _name_class(self, index: int) -> str:
        return printable(self.network.class_names[index]) if self.network.class_names else f"class {index}"

    def _decide(self, probs: torch.Tensor) -> list[str]:
        rules = self.calibration
        if rules is None:
            return []
        decisions = [
            f"{printable(name)}: {'positive' if positive else 'negative'}, {bound:.1%} or more is positive"
            for (name, bound), positive in zip(rules.thresholds.items(), rules.is_positive(probs)[0], strict=True)
        ]
        if not rules.is_decided(probs)[0]:
            decisions.append(f"{UNDECIDED}: no class has {rules.undecided_below:.1%} or more")
        return decisions

    def _draw(self, image: Image.Image, class_index: int, layer: str) -> tuple[str, str | None, str | None]:
        try:
            return printable(layer), to_data_uri(self.draw_heat_map(image, class_index, layer), _SIDE), None
        except _ERRORS as e:
            return abbreviate(layer, 80), None, printable(e)


def _format_share(prob: float) -> str:
    """A probability in per cent, of which none is rounded to certainty."""
    if 0.9995 <= prob < 1:
        return "> 99.9%"
    return "< 0.1%" if 0 < prob < 0.0005 else f"{prob:.1%}"


def decode_files(files: object) -> list[tuple[str, bytes]]:
    """The names and bytes of files that the page's script sends: [[name, content in base64], ...].

    Raises:
        ValueError: If it is anything else.
    """
    try:
        pairs = [(name, base64.b64decode(content, validate=True)) for name, content in files]
        if all(isinstance(name, str) for name, _ in pairs):
            return pairs
    except (TypeError, ValueError, binascii.Error):
        pass
    raise ValueError("files are not as the page sends them: expected a list of names and contents in base64")


def render_template(name: str, **values: object) -> str:
    """A template of this room as HTML, in which values are text."""
    jinja2 = require("jinja2", "demo")
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name).render(values)
