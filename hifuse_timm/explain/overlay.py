"""Heat maps laid over the image from which the network's input was made."""

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from timm.data.transforms import CenterCropOrPad, TrimBorder
from torch import nn
from torchvision.transforms import CenterCrop

from ..errors import require
from ..images import thumbnail, to_mode
from ..loading import Trained, image_mode
from .cam import find_layer, grad_cam

__all__ = ["COLORS", "blend", "draw_heat_map", "find_last_layer", "heat_map", "preprocess", "project", "seen_part"]

COLORS = "jet"  # of heat maps, as matplotlib names them: those of the paper's Figure 4


def heat_map(
    model: nn.Module,
    image: Image.Image,
    class_index: int | None = None,
    layer: str | None = None,
    transform=None,
) -> np.ndarray:
    """Grad-CAM of one image, laid over it.

    Args:
        model: Classification network of timm for images of one or three channels.
        image: The image, of any size, with 8 bits a channel, as `load_image` gives it.
        class_index: Class to explain, by default the predicted one.
        layer: Layer whose map is taken, as for `grad_cam`.
        transform: timm's transform that makes the network's input of the image, by default that of the network's
            pretrained config.

    Returns:
        Heat map of the image's height and width, float32 from 0 to 1. It lies over the part of the image that the
        network saw; what the transform cuts off around it is 0.

    Raises:
        ValueError: As `grad_cam`, or if the network takes other than one or three channels.
        RuntimeError: If grad-cam is not installed.
    """
    if transform is None:
        transform = create_transform(**resolve_input_data_config(model))
    x, box = preprocess(to_mode(image, image_mode(model)), transform)
    maps, _ = grad_cam(model, x.unsqueeze(0), class_index, layer)
    return project(maps[0], box, image.size)


def draw_heat_map(
    network: Trained, image: Image.Image, class_index: int | None = None, layer: str | None = None, side: int = 448
) -> Image.Image:
    """A picture of an image with Grad-CAM over it, as in the paper's Figure 4.

    Args:
        network: Classification network, and how images reach it.
        image: The image, of any size, with 8 bits a channel, as `load_image` gives it.
        class_index: Class to explain, by default the predicted one.
        layer: Layer whose map is taken, as for `grad_cam`.
        side: Pixels of the picture's longer side, at most.

    Returns:
        The picture, in RGB: the colours of the heat map over the image in grey, dark where the network's crop cuts off.

    Raises:
        ValueError: As `grad_cam`.
        RuntimeError: If the extra is not installed.
    """
    picture = thumbnail(image, side)
    x, box = preprocess(to_mode(image, network.image_mode), network.transform)
    maps, _ = grad_cam(network.model, x.unsqueeze(0), class_index, layer)
    box = tuple(np.array(box) * ([picture.width / image.width, picture.height / image.height] * 2))
    blended = blend(np.asarray(picture), project(maps[0], box, picture.size), seen_part(box, picture.size))
    return Image.fromarray((255 * blended).round().astype(np.uint8))


def find_last_layer(network: Trained) -> str:
    """Find the last layer before the head, as `find_layer`, by noise of the size that the network takes.

    Raises:
        ValueError: As `find_layer`, or if the network is a file of `export`, which has no layers.
    """
    if network.precision is not None:
        raise ValueError(f"{network.name} is exported, without layers to look at: heat maps need the checkpoint")
    x, _ = preprocess(Image.new(network.image_mode, (256, 256)), network.transform)
    return find_layer(network.model, torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(0)))


def blend(picture: np.ndarray, heat: np.ndarray, seen: tuple[int, int, int, int]) -> np.ndarray:
    """A heat map's colours over a picture in grey, so that every colour is the map's.

    Args:
        picture: The picture, (H, W, 3), from 0 to 255.
        heat: The heat map, (H, W), from 0 to 1.
        seen: The part that the network saw, left, top, right and bottom; what lies around it is darkened.

    Returns:
        (H, W, 3), from 0 to 1.
    """
    colors = require("matplotlib", "explain").colormaps[COLORS]
    grey = picture.mean(axis=2, keepdims=True) / 255
    x0, y0, x1, y1 = seen
    blended = 0.3 * grey.repeat(3, axis=2)
    blended[y0:y1, x0:x1] = 0.5 * (grey + colors(heat)[..., :3])[y0:y1, x0:x1]
    return blended


def preprocess(image: Image.Image, transform) -> tuple[torch.Tensor, tuple[float, float, float, float]]:
    """Make the network's input of an image.

    Returns:
        The input, (in_chans, H, W), and the part of the image that it shows: left, top, right and bottom in pixels of
        the image, beyond which it reaches where the transform pads.
    """
    left = top = 0.0
    scale_x = scale_y = 1.0  # pixels of the image for one of the step's
    for step in transform.transforms:
        before = image.size if isinstance(image, Image.Image) else None
        image = step(image)
        if before is None or not isinstance(image, Image.Image):
            continue
        if isinstance(step, (CenterCrop, CenterCropOrPad, TrimBorder)):
            left += round((before[0] - image.width) / 2) * scale_x
            top += round((before[1] - image.height) / 2) * scale_y
        else:
            scale_x *= before[0] / image.width
            scale_y *= before[1] / image.height
    return image, (left, top, left + image.shape[2] * scale_x, top + image.shape[1] * scale_y)


def project(heat: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Lay a heat map of the network's input over an image of this width and height."""
    result = np.zeros((size[1], size[0]), np.float32)
    x0, y0, x1, y1 = seen_part(box, size)
    scale_x, scale_y = heat.shape[1] / (box[2] - box[0]), heat.shape[0] / (box[3] - box[1])
    source = np.array(
        [(x0 - box[0]) * scale_x, (y0 - box[1]) * scale_y, (x1 - box[0]) * scale_x, (y1 - box[1]) * scale_y]
    )
    source = source.clip(0, [heat.shape[1], heat.shape[0]] * 2)  # against rounding
    part = Image.fromarray(heat).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=tuple(source))
    result[y0:y1, x0:x1] = np.asarray(part).clip(0, 1)
    return result


def seen_part(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image of this width and height that lies in the box, in whole pixels: left, top, right, bottom."""
    x0, y0 = min(max(round(box[0]), 0), size[0] - 1), min(max(round(box[1]), 0), size[1] - 1)
    return x0, y0, max(min(round(box[2]), size[0]), x0 + 1), max(min(round(box[3]), size[1]), y0 + 1)
