"""DICOM files become what a viewer shows of them, or are refused with what would help."""

import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from hifuse_timm.images import open_image

# Files of pydicom's own tests, of many transfer syntaxes.
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"

STORED = np.array([[0, 1024], [1064, 2048]], np.uint16)  # as of a CT: air, water, soft tissue, bone
VOI_LUT = Dataset()
VOI_LUT.LUTDescriptor, VOI_LUT.LUTData = [4, 0, 8], np.array([10, 20, 200, 255], np.uint16).tobytes()


@pytest.mark.parametrize(
    ("pixels", "attributes", "expected"),
    [
        # -1024 to 1024 HU; of the window -160 to 240, by the formula of PS3.3 C.11.2.1.2.1
        (STORED, dict(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400), [0, 102, 128, 255]),
        (STORED, dict(WindowCenter=[1024, 0], WindowWidth=[2048, 1]), [0, 128, 133, 255]),
        (STORED, dict(RescaleSlope=2, RescaleIntercept=0), [0, 128, 132, 255]),
        (STORED, dict(color="MONOCHROME1"), [255, 127, 123, 0]),
        ((STORED - 1000).astype(np.int16), dict(WindowCenter=0, WindowWidth=2000), [0, 131, 136, 255]),
        (STORED // 600, dict(VOILUTSequence=[VOI_LUT]), [10, 20, 20, 255]),
        (STORED, dict(WindowCenter=1024, WindowWidth=100, VOILUTFunction="SIGMOID"), [0, 128, 212, 255]),
        (np.full((2, 2), 9, np.uint8), {}, [0, 0, 0, 0]),
    ],
)
def test_dicom_is_rescaled_and_windowed(tmp_path, pixels, attributes, expected):
    image = open_image(write_dicom(tmp_path / "image", pixels, **attributes))
    assert image.mode == "L"
    assert np.array_equal(image, np.reshape(expected, (2, 2)))


def test_dicom_in_colour_keeps_its_colours(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    assert np.array_equal(open_image(write_dicom(tmp_path / "image.dcm", pixels)), pixels)
    tables = {
        f"{color}PaletteColorLookupTable{part}": value
        for color, entries in dict(Red=[0, 255 << 8], Green=[128 << 8, 0], Blue=[0, 64 << 8]).items()
        for part, value in dict(Descriptor=[2, 0, 16], Data=np.array(entries, np.uint16).tobytes()).items()
    }
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    image = open_image(write_dicom(tmp_path / "palette.dcm", indices, color="PALETTE COLOR", **tables))
    assert np.abs(np.asarray(image, int) - np.array([[0, 128, 0], [255, 0, 64]])[indices]).max() <= 1


def test_middle_frame_of_a_dicom_is_taken_with_its_own_window(tmp_path):
    frames = np.stack([STORED // 4, STORED // 2, STORED])
    image = open_image(write_dicom(tmp_path / "plain.dcm", frames, frames=3))
    assert image.info["frame"] == "2 of 3"
    assert np.array_equal(image, open_image(write_dicom(tmp_path / "middle.dcm", STORED // 2)))

    def group(name, **values):
        inner, outer = Dataset(), Dataset()
        for key, value in values.items():
            setattr(inner, key, value)
        setattr(outer, name, Sequence([inner]))
        return outer

    shared = group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    windows = [group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=400) for center in (900, 40, 900)]
    enhanced = write_dicom(
        tmp_path / "enhanced.dcm",
        np.stack([STORED // 4, STORED, STORED // 4]),
        frames=3,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(windows),
    )
    assert np.array_equal(open_image(enhanced), [[0, 102], [128, 255]])


# ------------------------------------------------------------------------------------------------------------- tables


def make_tables(byte_order: str, red, green, blue, bits=16, first=0) -> dict:
    """The attributes of a palette of words in a byte order."""
    tables = {}
    for color, entries in dict(Red=red, Green=green, Blue=blue).items():
        tables[f"{color}PaletteColorLookupTableDescriptor"] = [len(entries), first, bits]
        tables[f"{color}PaletteColorLookupTableData"] = np.array(entries, f"{byte_order}u2").tobytes()
    return tables


@pytest.mark.parametrize("scale, bits", [(257, 16), (1, 16), (1, 8)], ids=["16 bits", "8 bits said to be 16", "8 bits"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=["little", "big"])
def test_palette_gives_its_colours_in_either_byte_order(syntax, scale, bits, tmp_path):
    colors = np.array([[0, 0, 0], [255, 10, 0], [0, 200, 128]])
    tables = make_tables("<" if syntax.is_little_endian else ">", *(colors.T * scale), bits=bits)
    indices = np.array([[0, 1], [2, 2]], np.uint8)
    image = open_image(write_dicom(tmp_path / "p.dcm", indices, color="PALETTE COLOR", syntax=syntax, **tables))
    assert np.array_equal(image, colors[indices])


def test_palette_of_packed_bytes_in_big_endian_words_gives_its_colours(tmp_path):
    tables = {}
    for color, entries in dict(Red=[0, 255], Green=[10, 20], Blue=[40, 0]).items():
        tables[f"{color}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        tables[f"{color}PaletteColorLookupTableData"] = bytes(entries[::-1])  # the first is the lower byte of a word
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    path = write_dicom(tmp_path / "p.dcm", indices, color="PALETTE COLOR", syntax=ExplicitVRBigEndian, **tables)
    assert np.array_equal(open_image(path), np.array([[0, 10, 40], [255, 20, 0]])[indices])


def test_values_beyond_a_table_are_those_of_its_ends(tmp_path):
    values = np.array([[0, 100], [355, 4000]], np.uint16)
    ramp = np.arange(256)
    path = write_dicom(
        tmp_path / "palette.dcm", values, color="PALETTE COLOR", **make_tables("<", ramp, ramp, ramp, first=100)
    )
    assert np.array_equal(np.asarray(open_image(path))[..., 0], [[0, 0], [255, 255]])
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 100, 8], np.arange(256, dtype=np.uint16).tobytes()
    path = write_dicom(tmp_path / "voi.dcm", values, VOILUTSequence=[table])
    assert np.array_equal(open_image(path), [[0, 0], [255, 255]])


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize(
    "attributes, words",
    [
        (dict(color="a\nb" * 999), r"of 3 samples a pixel in a\nba\nb"),
        (dict(color="HSV"), "of 3 samples a pixel in HSV, expected 1 in MONOCHROME1"),
        (dict(color="YBR_PARTIAL_420"), "of 3 samples a pixel in YBR_PARTIAL_420"),
        (dict(color="MONOCHROME2"), "of 3 samples a pixel in MONOCHROME2"),
        (dict(HighBit=15), "HighBit 15 for 8 bits, expected 7"),
        (dict(NumberOfFrames=-2), "NumberOfFrames -2, expected 1 or more"),
        (dict(Rows=30_000, Columns=30_000), "is too large: 30000 x 30000 pixels"),
        (dict(Rows=1, Columns=20_000), "is too narrow: 20000 x 1 pixels"),
        (dict(Rows=9_000, Columns=9_000, BitsAllocated=64, BitsStored=64, HighBit=63), "is too large: 9000 x 9000"),
        (dict(Rows=0), "without pixels"),
    ],
)
def test_dicom_that_would_be_shown_wrong_or_is_beyond_reason_is_refused(attributes, words, tmp_path):
    path = write_dicom(tmp_path / "image.dcm", np.zeros((2, 2, 3), np.uint8), **attributes)
    with pytest.raises(ValueError) as error:
        open_image(path)
    message = str(error.value)
    assert message.startswith(f"{path} is") and words in message
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 900


def test_deflated_dicom_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "image.dcm", STORED, syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("zlib.decompress", None)
    with pytest.raises(
        ValueError, match="image.dcm is DICOM of the transfer syntax Deflated Explicit VR Little Endian"
    ):
        open_image(path)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "JPEG-lossy", "SC_rgb_jpeg_gdcm"])
def test_missing_decoder_is_named_with_what_to_install(name, monkeypatch):
    """Of JPEG-LS, of JPEG with 12 bits, which Pillow reads in 8 bits only, and of lossless JPEG."""
    decoder = pydicom.pixels.get_decoder(pydicom.dcmread(FOLDER / f"{name}.dcm").file_meta.TransferSyntaxUID)
    for plugin in ("gdcm", "pylibjpeg", "pyjpegls"):  # on a machine that has them
        monkeypatch.delitem(decoder._available, plugin, raising=False)
    with pytest.raises(ValueError) as error:
        open_image(FOLDER / f"{name}.dcm")
    for word in ("pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg", "python-gdcm", decoder.UID.name, "gdcm"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    """693_J2KI ExplVR_BigEnd J2K_pixelrep_mismatch JPEG2000 MR_small MR_small_RLE MR_small_bigendian MR_small_implicit
    SC_rgb_dcmtk_+eb+cy+s2 SC_rgb_gdcm_KY SC_rgb_jpeg_dcmtk SC_rgb_rle_16bit_2frame SC_rgb_rle_32bit
    SC_ybr_full_422_uncompressed examples_jpeg2k examples_palette examples_ybr_color liver_expb_1frame rtdose_expb
    """.split(),
)
def test_many_transfer_syntaxes_are_read(name):
    image = open_image(FOLDER / f"{name}.dcm")
    assert image.mode in ("L", "RGB") and np.ptp(np.asarray(image)) > 120


def test_missing_pydicom_is_named_with_the_extra_to_install(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "image.dcm", STORED)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(RuntimeError, match=r"pydicom cannot be imported.*hifuse-timm\[explain\]"):
        open_image(path)
