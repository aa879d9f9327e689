"""Image files as the network's training saw them: one way for all that reads images.

timm's train.py opens a file with Pillow and converts it to RGB, or to L for a network of one channel. What that makes
of a file, and what is made of it here:

| pixels of the file | here |
| --- | --- |
| 8 bits, grey or RGB | as they are |
| 1 bit | 0 and 255 |
| a palette | its colours |
| transparency (LA, PA, P, RGBA) | left out; the colours under it are those of the file |
| CMYK, YCbCr | RGB, by Pillow's formulas |
| 16 bits a channel, RGB or with transparency | the upper 8 bits, which are all that Pillow reads |
| grey of more than 8 bits, or floating point (I;16, I, F) | as they are if all are whole numbers from 0 to 255, else \
refused: train.py cuts them there, and saw white for what is brighter |
| LAB | refused: Pillow makes no RGB of it |
| several frames | the first |
| turned by its EXIF orientation | as stored, as train.py sees it (a TIFF upright, which Pillow turns); `prepare` \
writes it upright |
| DICOM, which train.py does not read | rescaled, windowed and of 8 bits: `hifuse_timm.dicom` |

Only the formats of `FORMATS` are opened, whatever a file is called: no other decoder of Pillow, and no program that one
of them would start, ever sees a file.
"""

import base64
import io
import threading
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .errors import first_line, require
from .pixels import ImageError, check_size, to_8_bits
from .text import abbreviate, printable

__all__ = [
    "FORMATS",
    "ImageError",
    "decode_image",
    "fits_8_bits",
    "is_turned",
    "open_image",
    "stretch",
    "thumbnail",
    "to_data_uri",
    "to_mode",
    "upright",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")  # as Pillow names them

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of which Pillow makes L and RGB

_FILTERING = threading.Lock()  # warnings are filtered for all threads at once


def open_image(path: str | Path, mode: str | None = None) -> Image.Image:
    """Read an image file as train.py sees it; DICOM, which that does not read, by its window.

    Args:
        path: The file, of `FORMATS` or DICOM. Its name does not matter.
        mode: Mode of the image, `L` or `RGB` as the network was trained; by default the file's own, of 8 bits.

    Returns:
        The image. Of several frames of a DICOM file, `image.info['frame']` says which, as '31 of 60'.

    Raises:
        OSError: If the file cannot be opened.
        ImageError: A ValueError, if it is no image, is damaged, is too large or too narrow
            (`hifuse_timm.pixels.check_size`), or has grey values that train.py would cut off.
        RuntimeError: If it is DICOM and pydicom is not installed.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ImageError(f"{printable(path)} is no file")
    with path.open("rb") as file:
        try:
            image = decode_image(file)
            if not fits_8_bits(image):
                values = np.asarray(image, np.float64)
                values = values[np.isfinite(values)]
                raise ImageError(
                    f"has grey values from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}, and "
                    "train.py cuts off what is no whole number from 0 to 255: convert images to 8 bits before the "
                    "training, as prepare does, and here in the same way"
                )
        except ImageError as e:
            raise ImageError(f"{printable(path)} {abbreviate(e, 800)}") from e
    return to_mode(image, mode or ("L" if image.mode not in _MODES else image.mode))


def decode_image(file: BinaryIO) -> Image.Image:
    """Decode an image, of any depth, in its own mode.

    Raises:
        ImageError: As `open_image`, in words that follow the file's name.
        RuntimeError: If it is DICOM and pydicom is not installed.
    """
    is_dicom = file.read(132)[128:] == b"DICM"
    file.seek(0)
    decode = _decode_with_pillow
    if is_dicom:
        require("pydicom", "explain")
        from .dicom import read_dicom as decode  # imports pydicom
    try:
        return decode(file)
    except UnidentifiedImageError:
        raise ImageError(f"is no image that is read here: expected {', '.join(FORMATS)} or DICOM") from None
    except Image.DecompressionBombError as e:
        raise ImageError(f"is too large: {e}") from e
    except (ImageError, MemoryError):
        raise
    except Exception as e:  # a damaged file fails at whatever its first wrong byte leads to
        raise ImageError(f"is damaged or of a kind that cannot be read ({first_line(e)})") from e


def _decode_with_pillow(file: BinaryIO) -> Image.Image:
    with _FILTERING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=FORMATS)
    check_size(*image.size)  # which refuses what Pillow warns of
    image.load()
    if image.mode not in _MODES and not _is_deep(image):
        raise ImageError(f"has pixels of the mode {image.mode}, of which Pillow makes no RGB")
    return image


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def fits_8_bits(image: Image.Image) -> bool:
    """Whether all of an image's values are whole numbers from 0 to 255, so that none is cut off."""
    if not _is_deep(image):
        return True
    values = np.asarray(image)
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())


def stretch(image: Image.Image) -> Image.Image:
    """An image of one channel of any depth in mode L, from black at its darkest value to white at its brightest."""
    return Image.fromarray(to_8_bits(np.asarray(image)))


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF data say that the image is to be turned or mirrored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # damaged EXIF data turn nothing, whatever they lead the parser to
        return False


def upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored as its EXIF data say."""
    return ImageOps.exif_transpose(image) if is_turned(image) else image


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode, itself if it has it: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The image in RGB, no side longer than this many pixels, without what its file says beside its pixels."""
    scale = min(1, side / max(image.size))
    size = [max(round(pixels * scale), 1) for pixels in image.size]
    small = to_mode(image, "RGB").resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.asarray(small))


def to_data_uri(image: Image.Image, side: int) -> str:
    """A `thumbnail` of the image as JPEG in a data URI, for HTML."""
    buffer = io.BytesIO()
    thumbnail(image, side).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
