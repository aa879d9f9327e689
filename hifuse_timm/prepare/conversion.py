"""Images that are rewritten as PNG, as train.py would not see them as they are meant, or not at all."""

import io

from PIL import Image

from ..images import decode_image, fits_8_bits, is_turned, stretch, to_mode, upright
from .archives import SourceFile, is_image

__all__ = ["REWRITTEN", "find_reasons", "read_subject", "rewrite"]

REWRITTEN = {
    "turned": "images that their EXIF data turn, which train.py ignores: written upright, as PNG",
    "depth": "grey images of more than 8 bits, which train.py cuts off at 255: written as PNG of 8 bits, from their "
    "darkest value to their brightest",
    "dicom": "DICOM files, which train.py does not read: written as PNG of 8 bits, by their window",
    "format": "images with endings that timm's reader of folders passes over: written as PNG",
}


def find_reasons(image: Image.Image, name: str) -> list[str]:
    """Why an image of this name cannot stay as it is, of `REWRITTEN`."""
    is_dicom = image.format is None
    reasons = dict(
        turned=is_turned(image),
        depth=not fits_8_bits(image),
        dicom=is_dicom,
        format=not is_dicom and not is_image(name),
    )
    return [reason for reason, applies in reasons.items() if applies]


def rewrite(file: SourceFile) -> SourceFile:
    """The file as PNG of 8 bits, upright."""

    def read() -> bytes:
        image = upright(decode_image(io.BytesIO(file.read())))
        image = to_mode(image, "L" if image.mode in ("1", "L") else "RGB") if fits_8_bits(image) else stretch(image)
        png = io.BytesIO()
        image.save(png, "PNG", icc_profile=None)  # which may be of the mode that it had
        return png.getvalue()

    name = file.path.name if file.path.suffix.lower() == ".png" else f"{file.path.name}.png"
    return SourceFile(file.path.with_name(name), read)


def read_subject(data: bytes) -> str | None:
    """The patient of a DICOM file, or its series where it names none: no other tag of it is read."""
    from pydicom import dcmread

    tags = ["PatientID", "SeriesInstanceUID"]
    dataset = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=tags)
    return next((name for tag in tags if (name := str(dataset.get(tag) or "").strip())), None)
