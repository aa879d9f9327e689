"""Pixels of any depth as 8 bits, and the sizes of images that are read."""

import numpy as np
from PIL import Image

__all__ = ["ImageError", "check_size", "to_8_bits"]

_MAX_RATIO = 100  # of an image's sides; resized to 256 pixels on the shorter side it has 6.5 million


class ImageError(ValueError):
    """Why a file is not read as an image, in words that follow its name."""


def check_size(width: int, height: int, channels: int = 3) -> None:
    """Check, before an image is decoded, that it and what transforms make of it fit into memory.

    Args:
        width: Pixels in a row.
        height: Rows.
        channels: Bytes a pixel.

    Raises:
        ImageError: If it has no pixels, more than Pillow takes without a warning (`PIL.Image.MAX_IMAGE_PIXELS`, 89
            million), or one side is over 100 times the other: its shorter side is what transforms resize.
    """
    size = f"{width} x {height} pixels"
    if width < 1 or height < 1:
        raise ImageError(f"has {size}")
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise ImageError(f"is too narrow: {size}, and a side may be {_MAX_RATIO} times the other at most")
    most = Image.MAX_IMAGE_PIXELS
    if most and width * height * max(channels, 4) > 4 * most:  # of which Pillow keeps 4 bytes a pixel
        raise ImageError(f"is too large: {size}, and {most:,} of up to 4 bytes are read at most")


def to_8_bits(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values from low to high, by default their own darkest and brightest, as 0 to 255."""
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if low is None or high is None:
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low == high:
        return np.zeros(values.shape, np.uint8)
    values = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
    return np.rint(np.nan_to_num(values, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)
