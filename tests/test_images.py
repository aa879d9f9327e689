"""Image files are read as train.py sees them, by one function, or refused by name."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import timm
from dicoms import write_dicom
from PIL import Image

from hifuse_timm.explain import load_image
from hifuse_timm.images import FORMATS, open_image, thumbnail


def see_as_train_py(path, mode: str) -> np.ndarray:
    """The pixels that the dataset of timm's train.py makes of the only image in a folder."""
    dataset = timm.data.create_dataset("", root=str(path.parent.parent), input_img_mode=mode)
    return np.asarray(dataset[0][0])


def make_images() -> dict[str, Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "1.png": rgb.convert("1"),
        "L.png": rgb.convert("L"),
        "LA.png": Image.fromarray(pixels[..., :2], "LA"),
        "P.png": rgb.convert("P"),
        "P with transparency.png": (rgb.convert("P", palette=Image.Palette.ADAPTIVE), dict(transparency=b"\0\x80\xff")),
        "RGBA.png": Image.fromarray(pixels),
        "RGB with a transparent colour.png": (rgb, dict(transparency=(1, 2, 3))),
        "16 bits of small values.png": Image.fromarray(pixels[..., 0].astype(np.uint16)),
        "16 bits of small values.tif": Image.fromarray(pixels[..., 0].astype(np.uint16)),
        "32 bits of small values.tif": Image.fromarray(pixels[..., 0].astype(np.int32)),
        "whole floats.tif": Image.fromarray(pixels[..., 0].astype(np.float32)),
        "CMYK.jpg": rgb.convert("CMYK"),
        "CMYK.tif": rgb.convert("CMYK"),
        "YCbCr.tif": rgb.convert("YCbCr"),
        "turned.jpg": (rgb, dict(exif=turned)),
        "turned.png": (rgb, dict(exif=turned)),
        "turned.tif": (rgb, dict(exif=turned)),
        "frames.gif": (rgb, dict(save_all=True, append_images=[rgb.rotate(180)])),
        "image.webp": rgb,
        "image.bmp": rgb,
        "image.ppm": rgb,
        "image.jp2": rgb,
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", make_images())
def test_image_is_what_train_py_sees(name, mode, tmp_path):
    (tmp_path / "train" / "class").mkdir(parents=True)
    # by its content alone: timm lists .png and .jpg
    path = tmp_path / "train" / "class" / "image.png"
    image = make_images()[name]
    image, options = image if isinstance(image, tuple) else (image, {})
    with path.open("wb") as f:
        image.save(f, Image.registered_extensions()[os.path.splitext(name)[1]], **options)
    expected = see_as_train_py(path, mode)
    assert np.ptp(expected) > 0
    assert np.array_equal(open_image(path, mode), expected)
    own = open_image(path)
    assert np.array_equal(own.convert(mode), expected) and own.mode in (name.split(".")[0].split()[0], "L", "RGB", "P")


def test_16_bits_a_channel_in_colour_are_the_upper_8(tmp_path):
    """Which is all that Pillow reads, here and in train.py."""
    pixels = np.array([[[0x1234, 0xFF00, 0x00FF], [0, 1, 0x8000]]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "rgb48.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.array_equal(open_image(tmp_path / "rgb48.png", "RGB"), pixels >> 8)


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("deep.png", np.array([[0, 256]], np.uint16), "from 0 to 256"),
        ("deep.tif", np.array([[1000, 3000]], np.uint16), "from 1000 to 3000"),
        ("deep.tif", np.array([[1000, 3000]], ">u2"), "from 1000 to 3000"),
        ("deep.pgm", np.array([[1000, 3000]], np.uint16), "from 1000 to 3000"),
        ("deep.jp2", np.array([[1000, 3000]], np.uint16), "from 1000 to 3000"),
        ("signed.tif", np.array([[-1, 200]], np.int32), "from -1 to 200"),
        ("share.tif", np.array([[0, 0.5], [1, 1]], np.float32), "from 0 to 1"),
        ("missing.tif", np.array([[np.nan, 7]], np.float32), "from 7 to 7"),
    ],
)
def test_grey_values_that_train_py_cuts_off_are_refused(name, values, words, tmp_path):
    path = tmp_path / name
    if values.dtype == ">u2":
        Image.frombytes("I;16B", values.shape[::-1], values.tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    for mode in (None, "L", "RGB"):
        with pytest.raises(ValueError) as error:
            open_image(path, mode)
        assert str(error.value).startswith(f"{path} has grey values {words}, and train.py cuts off")
        assert "convert images to 8 bits before the training, as prepare does" in str(error.value)


def test_only_the_formats_that_are_meant_are_opened(tmp_path, monkeypatch):
    """EPS, of which Pillow makes an image by starting Ghostscript, is no image whatever its name."""
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "image.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PCX")
    (tmp_path / "image.png").write_bytes(buffer.getvalue())
    for name in ("image.jpg", "image.png"):
        with pytest.raises(ValueError, match=f"{name} is no image that is read here: expected PNG, JPEG, .* or DICOM"):
            open_image(tmp_path / name)
    assert not started.exists()
    with pytest.raises(OSError):  # it would have been
        Image.open(tmp_path / "image.jpg").load()
    assert started.exists()
    assert "EPS" not in FORMATS


@pytest.mark.parametrize("size, fine", [((2, 200), True), ((200, 2), True), ((1, 101), False), ((20_000, 1), False)])
def test_image_that_is_too_narrow_is_refused_before_it_is_decoded(size, fine, tmp_path, monkeypatch):
    Image.new("L", size).save(tmp_path / "image.png")
    if fine:
        assert open_image(tmp_path / "image.png").size == size
        return
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ValueError, match=f"image.png is too narrow: {size[0]} x {size[1]} pixels"):
        open_image(tmp_path / "image.png")


@pytest.mark.filterwarnings("error")
def test_image_of_which_pillow_warns_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for pixels, fine in ((900, True), (1100, False), (2100, False)):
        files = tmp_path / "image.png", write_dicom(tmp_path / "image.dcm", np.zeros((10, pixels // 10), np.uint8))
        Image.new("L", (10, pixels // 10)).save(files[0])
        for file in files:
            if fine:
                open_image(file)
            else:
                with pytest.raises(ValueError, match=f"{file} is too large: "):
                    open_image(file)


def test_what_cannot_be_read_is_named(tmp_path):
    Image.new("LAB", (9, 9)).save(tmp_path / "lab.tif")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in {
        "lab.tif": "has pixels of the mode LAB, of which Pillow makes no RGB",
        "text.png": "is no image that is read here",
        "empty.png": "is no image that is read here",
        "folder.png": "is no file",
        "pipe.png": "is no file",
    }.items():
        with pytest.raises(ValueError) as error:
            open_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name} {words}")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "missing.png")


def test_the_door_of_explain_leads_here():
    assert load_image is open_image


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[2J.png"])
def test_image_is_refused_in_one_line_whatever_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="is no image that is read here") as refusal:
        open_image(tmp_path / name)
    assert str(refusal.value).isprintable()


def test_thumbnail_holds_pixels_alone(tmp_path):
    image = Image.effect_noise((90, 60), 50)
    image.save(tmp_path / "scan.jpg", comment=b"Jane Doe")
    small = thumbnail(open_image(tmp_path / "scan.jpg"), 30)
    assert small.mode == "RGB" and small.size == (30, 20) and not small.info
    assert thumbnail(open_image(tmp_path / "scan.jpg"), 500).size == (90, 60)
