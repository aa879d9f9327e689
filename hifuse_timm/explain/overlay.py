"""Heat maps laid over the image from which the network's input was made."""

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from timm.data.transforms import CenterCropOrPad, TrimBorder
from torch import nn
from torchvision.transforms import CenterCrop

from ..images import to_mode
from ..loading import image_mode
from .cam import grad_cam

__all__ = ["heat_map", "preprocess", "project", "seen_part"]


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
