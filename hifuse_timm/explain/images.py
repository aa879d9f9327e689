"""Image files of any kind, DICOM among them, as images of 8 bits a channel."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import require

__all__ = ["load_image", "to_mode"]


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as one of 8 bits a channel.

    Reads what Pillow reads, the first frame of a file with several, and DICOM. Pixels of more than 8 bits are brought
    to 0 to 255: from their darkest to their brightest in a file that Pillow reads, by its window in DICOM.

    DICOM: rescale slope and intercept (or the modality LUT) are applied, then the VOI LUT or the first window; a file
    with neither is stretched from its darkest to its brightest value. MONOCHROME1 is inverted, so that bright is high.
    Of several frames the middle one is taken; `image.info['frame']` then says which, as '31 of 60'. Compressed pixels
    need what pydicom needs for them (Pillow does for JPEG baseline and JPEG 2000; pylibjpeg for the others).

    Args:
        path: The file.

    Returns:
        The image, in mode L or RGB if it had more than 8 bits or was DICOM, else in its own mode.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no image, is damaged, or has more pixels than Pillow takes to be safe
            (2 * PIL.Image.MAX_IMAGE_PIXELS, 179 million).
        RuntimeError: If it is DICOM and pydicom is not installed.
    """
    path = Path(path)
    with path.open("rb") as f:
        is_dicom = f.read(132)[128:] == b"DICM"
    if is_dicom:
        require("pydicom", "explain")
    try:
        return _read_dicom(path) if is_dicom else _read_with_pillow(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that Pillow or pydicom reads") from None
    except Image.DecompressionBombError as e:
        raise ValueError(f"{path} is too large: {e}") from e
    except MemoryError:
        raise
    except Exception as e:  # a damaged file fails at whatever its first wrong byte leads to
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is damaged or of a kind that cannot be read ({reason})") from e


def _read_with_pillow(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    return image


def _read_dicom(path: Path) -> Image.Image:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

    dataset = dcmread(path, stop_before_pixels=True)
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    frame = num_frames // 2
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise ValueError(f"DICOM of the class {dataset.get('SOPClassUID', 'unknown')}, without pixels")
    if Image.MAX_IMAGE_PIXELS and rows * columns > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{rows * columns} pixels, at most {2 * Image.MAX_IMAGE_PIXELS} are read")
    pixels = pixel_array(path, index=frame)

    # enhanced objects keep these of all frames and of each frame in sequences of their own
    groups = [*dataset.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += dataset.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name, [])[:1]:
                dataset.update(item)

    kind = dataset.PhotometricInterpretation
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        values, bounds = apply_modality_lut(pixels, dataset), ()
        if dataset.get("VOILUTSequence"):
            values = apply_voi_lut(values, dataset)
            bounds = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        elif dataset.get("WindowWidth") and dataset.get("WindowCenter") is not None:
            values = apply_windowing(values, dataset)
            bounds = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        pixels = _to_8_bits(values, *bounds)
        if kind == "MONOCHROME1":
            pixels = 255 - pixels
    elif kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = _to_8_bits(pixels, 0, np.iinfo(pixels.dtype).max)
    else:
        pixels = _to_8_bits(pixels, 0, 2**dataset.BitsStored - 1)
    image = Image.fromarray(pixels)
    if num_frames > 1:
        image.info["frame"] = f"{frame + 1} of {num_frames}"
    return image


def _to_8_bits(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values from low to high, by default their own darkest and brightest, as 0 to 255."""
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if low is None or high is None:
        low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low == high:
        return np.zeros(values.shape, np.uint8)
    values = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
    return np.rint(np.nan_to_num(values, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode, itself if it has it: Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)
