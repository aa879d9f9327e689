"""The images of a run that are worth a look: the most confident mistakes, and those that are least certain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..images import open_image, to_data_uri
from ..predictions import Predictions

__all__ = ["Example", "add_pictures", "find_mistakes", "find_uncertain"]

_MOST = 12  # images of each kind
_SIDE = 240  # pixels of a picture's longer side


@dataclass(frozen=True)
class Example:
    """An image that the page shows.

    Attributes:
        file: Its name.
        target: Its class.
        predicted: The class that it is taken for.
        index: The index of that.
        prob: Probability of the class that it is taken for.
        target_prob: Probability of its class.
        picture: The image as a data URI; None where it is not shown.
        heat_map: The heat map of the class that it is taken for, over the image, as a data URI; None where it has none.
    """

    file: str
    target: str
    predicted: str
    index: int
    prob: float
    target_prob: float
    picture: str | None = None
    heat_map: str | None = None


def find_mistakes(predictions: Predictions) -> list[Example]:
    """The images that are taken for a wrong class, the greatest probability of it first."""
    prob, predicted = predictions.probs.max(1)
    order = prob.argsort(descending=True, stable=True)
    return _describe(predictions, order[(predicted != predictions.targets)[order]])


def find_uncertain(predictions: Predictions) -> list[Example]:
    """The images whose greatest probability is least, be they right or wrong, the least first."""
    return _describe(predictions, predictions.probs.amax(1).argsort(stable=True))


def add_pictures(
    examples: list[Example], folder: str | Path, draw_heat_map: Callable[[Image.Image, int], Image.Image] | None
) -> list[Example]:
    """Add to each example its picture, and the heat map of the class that it is taken for.

    Args:
        examples: The examples.
        folder: Where their files lie.
        draw_heat_map: Draws the heat map of a class, by its index, over an image; None for pictures alone.

    Raises:
        ValueError: If a file cannot be read as an image.
        OSError: If it cannot be opened.
    """
    shown = []
    for example in examples:
        image = open_image(Path(folder, example.file))
        heat_map = None if draw_heat_map is None else to_data_uri(draw_heat_map(image, example.index), _SIDE)
        shown.append(replace(example, picture=to_data_uri(image, _SIDE), heat_map=heat_map))
    return shown


def _describe(predictions: Predictions, rows) -> list[Example]:
    return [
        Example(
            file=predictions.files[i],
            target=predictions.classes[predictions.targets[i]],
            predicted=predictions.classes[k],
            index=k,
            prob=predictions.probs[i, k].item(),
            target_prob=predictions.probs[i, predictions.targets[i]].item(),
        )
        for i in rows[:_MOST].tolist()
        for k in [predictions.probs[i].argmax().item()]
    ]
