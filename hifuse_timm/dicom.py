"""DICOM files as images of 8 bits, by pydicom.

Rescale slope and intercept (or the modality LUT) are applied, then the VOI LUT or the first window; a file with
neither is stretched from its darkest to its brightest value. MONOCHROME1 is inverted, so that bright is high. Of
several frames the middle one is taken. Compressed pixels need what pydicom needs for them: Pillow does for JPEG
baseline and JPEG 2000, pylibjpeg or python-gdcm for the others.
"""

from typing import BinaryIO

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array

from .pixels import ImageError, check_size, to_8_bits

__all__ = ["read_dicom"]

_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or python-gdcm"

_GREY = ("MONOCHROME1", "MONOCHROME2")
# What pydicom makes RGB of; it hands others, as HSV and YBR_PARTIAL_420, on as they are stored.
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(file: BinaryIO) -> Image.Image:
    """Read the middle frame of a DICOM file.

    Returns:
        The image, of mode L or RGB. Of several frames `info['frame']` says which it is, as '31 of 60'.

    Raises:
        ImageError: If it has no pixels, is too large, or cannot be read as an image.
        Exception: Of any kind, by pydicom, where it is damaged.
    """
    dataset = _read_header(file)
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    if num_frames < 1:
        raise ImageError(f"is DICOM with NumberOfFrames {num_frames}, expected 1 or more")
    frame = num_frames // 2
    pixels = _read_frame(file, dataset, frame)
    kind = dataset.PhotometricInterpretation
    if kind in _GREY:
        pixels = _apply_window(pixels, _with_groups(dataset, frame))
        if kind == "MONOCHROME1":
            pixels = 255 - pixels
    elif kind == "PALETTE COLOR":
        pixels = _apply_palette(pixels, dataset)
    else:
        pixels = to_8_bits(pixels, 0, 2**dataset.BitsStored - 1)
    image = Image.fromarray(pixels)
    if num_frames > 1:
        image.info["frame"] = f"{frame + 1} of {num_frames}"
    return image


def _read_header(file: BinaryIO) -> Dataset:
    """What a file says of its pixels, checked before any are read."""
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if (syntax := meta.get("TransferSyntaxUID")) is not None and syntax.is_deflated:
        # pydicom would inflate the whole file, however large that is
        raise ImageError(f"is DICOM of the transfer syntax {syntax.name}, which is not read: write it as another")
    file.seek(0)
    dataset = dcmread(file, stop_before_pixels=True)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ImageError(f"is DICOM of the class {dataset.get('SOPClassUID', 'unknown')}, without pixels")
    kind, channels = dataset.get("PhotometricInterpretation"), dataset.get("SamplesPerPixel") or 1
    if channels != {**dict.fromkeys((*_GREY, "PALETTE COLOR"), 1), **dict.fromkeys(_COLORS, 3)}.get(kind):
        raise ImageError(
            f"is DICOM of {channels} samples a pixel in {kind}, expected 1 in {', '.join(_GREY)} or PALETTE COLOR, or "
            f"3 in {', '.join(_COLORS)}"
        )
    allocated = dataset.get("BitsAllocated") or 8
    stored = dataset.get("BitsStored") or allocated
    if (high_bit := dataset.get("HighBit")) is not None and high_bit != stored - 1:
        raise ImageError(f"is DICOM with HighBit {high_bit} for {stored} bits, expected {stored - 1}")
    check_size(dataset.Columns, dataset.Rows, channels * allocated // 8)
    return dataset


def _read_frame(file: BinaryIO, dataset: Dataset, frame: int) -> np.ndarray:
    file.seek(0)
    try:
        return pixel_array(file, index=frame)
    except RuntimeError as e:
        if type(e) is not RuntimeError:
            raise
        # of the decoders, each with its reason in a line of its own
        reason = " ".join(str(e).split())
        raise ImageError(
            f"is DICOM of the transfer syntax {dataset.file_meta.TransferSyntaxUID.name}, and no decoder that is "
            f"installed reads it: {_DECODERS} ({reason[:400]})"
        ) from e


def _with_groups(dataset: Dataset, frame: int) -> Dataset:
    """The dataset with what enhanced objects keep of all frames, and of each frame, in sequences of their own."""
    groups = [*dataset.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += dataset.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name, [])[:1]:
                dataset.update(item)
    return dataset


def _apply_window(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        pixels = _clip_to_table(pixels, dataset.ModalityLUTSequence[0].LUTDescriptor)
    values, bounds = apply_modality_lut(pixels, dataset), ()
    if dataset.get("VOILUTSequence"):
        descriptor = dataset.VOILUTSequence[0].LUTDescriptor
        values = apply_voi_lut(_clip_to_table(values, descriptor), dataset)
        bounds = 0, 2 ** descriptor[2] - 1
    elif dataset.get("WindowWidth") and dataset.get("WindowCenter") is not None:
        values = apply_windowing(values, dataset)
        bounds = apply_windowing(np.array([-np.inf, np.inf]), dataset)
    return to_8_bits(values, *bounds)


def _apply_palette(indices: np.ndarray, dataset: Dataset) -> np.ndarray:
    descriptor = dataset.RedPaletteColorLookupTableDescriptor
    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:  # which pydicom takes the words of a table to be
        for color in ("Red", "Green", "Blue"):
            element = dataset.get(f"{color}PaletteColorLookupTableData")
            if element is not None:
                swapped = np.frombuffer(element, np.uint16).byteswap().tobytes()
                setattr(dataset, f"{color}PaletteColorLookupTableData", swapped)
    first, num_entries = descriptor[1], descriptor[0] or 2**16
    colors = apply_color_lut(np.arange(first, first + num_entries), dataset)[:, :3]
    # entries of 8 bits stand in 16 as well, whatever the table says of itself
    colors = to_8_bits(colors, 0, 255 if colors.max() <= 255 else 65535)
    return colors[_clip_to_table(indices.astype(np.int64), descriptor) - first]


def _clip_to_table(values: np.ndarray, descriptor) -> np.ndarray:
    """Values within those that a look-up table has, beyond which its ends count: pydicom lets some wrap around."""
    num_entries, first, _ = descriptor
    return values.clip(first, first + (num_entries or 2**16) - 1)
