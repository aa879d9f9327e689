"""Inputs of the fuzzer: sound miniatures of every file that the commands read, changed at random.

A kind of input is a function of (originals, folder, rng): it writes files into the folder and returns the command that
reads them. The same rng makes the same files.
"""

import argparse
import copy
import io
import json
import math
import os
import pickle
import random
import shutil
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from dicoms import write_dicom
from miniatures import COVID_CLASSES, MINIATURES, paint
from parity import narrow_authors_state_dict
from PIL import Image
from safetensors.torch import save

from hifuse_timm.__main__ import main

__all__ = ["KINDS", "Command", "Originals"]

NETWORKS = {
    "hifuse_tiny": dict(dims=(8, 16), depths=(1, 1), num_heads=(1, 2)),
    "convnext_atto": dict(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
}

# What no checkpoint, list or JSON may bring a command to open, or to ask for.
SECRET = "../private/secret.json"
ADDRESS = "http://127.0.0.1:9/payload.py"

TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "~",
        "a",
        "CT_COVID",
        "a" * 3000,
        "\0",
        "a\nb",
        "a\r\n| b",
        "\x1b[2J",
        "$x$",
        "{}",
        "%s",
    ),
    *("ü", "\u202e", "<b>", "=1+1", '"', "'", ",", ";", "null", "NaN", "1e999", "-1", "10" * 400, "../../a", "C:\\a"),
    *(SECRET, os.path.abspath(os.sep + "etc/hostname"), ADDRESS, "hf-hub:a/b", "adamw", "L", "LAB", "nearest", "max"),
)
NUMBERS = (0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 2**31, 2**63, 10**400, True)
SOURCES = dict(url=ADDRESS, file=SECRET, source="url", hf_hub_id="a/b", hf_hub_filename=SECRET, custom_load=True)
OPENED = dict(pretrained=True, pretrained_cfg=SOURCES, cache_dir=".", checkpoint_path=SECRET, model_name="resnet10t")


class Trap:
    """Unpickled as Python does it, this leaves a file."""

    def __reduce__(self):
        return open, ("sprung", "w")


@dataclass(frozen=True)
class Command:
    """What to run in the folder of an input.

    Attributes:
        arguments: Of the command line.
        output: What it writes there, a file or a folder.
        partial: Whether it writes that with exit code 1 as well, where some of the images cannot be read.
    """

    arguments: list[str]
    output: str
    partial: bool = False


@dataclass
class Originals:
    """Sound files, which the inputs are made of.

    Attributes:
        folder: Where `data`, a dataset of two classes, `sound.pth.tar`, a network for it, and `predictions.csv`, those
            of the run, lie.
        checkpoints: Contents of checkpoints by the name of their model, training arguments as a dict.
        run: What `evaluate --json` wrote.
        average: What `average --json` wrote.
        predictions: What `evaluate --predictions` wrote.
        published: What `publish --dry-run` wrote, by name.
        validation: A table as `evaluate --predictions` writes it of val.
        calibration: What `calibrate` made of that.
        datasets: Of each dataset its files by path; those of an archive by the archive's name and their own.
    """

    folder: Path
    checkpoints: dict[str, dict]
    run: dict
    average: dict
    predictions: str
    published: dict[str, bytes]
    validation: str
    calibration: dict
    datasets: dict[str, dict[str, dict[str, bytes]]]

    @classmethod
    def make(cls, folder: Path) -> "Originals":
        """Write them into a new folder, with a secret beside it."""
        folder.mkdir()
        (folder.parent / "private").mkdir()
        (folder.parent / "private/secret.json").write_text("{}")
        rng = np.random.default_rng(0)
        for i in range(4):
            path = folder / "data/test" / COVID_CLASSES[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            paint(i % 2, 2, (40, 36), "RGB", rng).save(path)
        description = dict(name="covid19ct", title="COVID19-CT", classes=COVID_CLASSES)
        (folder / "data/dataset.json").write_text(json.dumps(description))
        checkpoints = {name: make_checkpoint(name) for name in NETWORKS}
        save_pickle(checkpoints["hifuse_tiny"], folder / "sound.pth.tar")
        checkpoints["authors"] = dict(net=narrow_authors_state_dict())
        path, other, average = (folder / name for name in ("run.json", "other.json", "average.json"))
        validation, calibration = folder / "validation.csv", folder / "calibration.json"
        validation.write_text(simulate_predictions(rng))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            evaluate = evaluate_data(folder / "data", path, folder / "sound.pth.tar").arguments
            main([*evaluate, "--predictions", str(folder / "predictions.csv")])
            run = json.loads(path.read_text())
            other.write_text(json.dumps(run | dict(accuracy=0.25)))
            main(["average", str(path), str(other), "--json", str(average)])
            publish = publish_metrics(folder / "sound.pth.tar").arguments
            main([*publish[:-1], str(folder / "published")])
            options = ["--out", str(calibration), "--undecided-below", "0.6", "--resamples", "9"]
            main(["calibrate", "--predictions", str(validation), *options])
        published = {path.name: path.read_bytes() for path in (folder / "published").iterdir()}
        predictions = (folder / "predictions.csv").read_text()
        datasets = {tag: read_miniature(tag) for tag in MINIATURES}
        return cls(
            folder,
            checkpoints,
            run,
            json.loads(average.read_text()),
            predictions,
            published,
            validation.read_text(),
            json.loads(calibration.read_text()),
            datasets,
        )

    def copy_data(self, folder: Path) -> Path:
        """A dataset of an input's own."""
        return Path(shutil.copytree(self.folder / "data", folder / "data"))


def make_checkpoint(name: str) -> dict:
    torch.manual_seed(0)
    state_dict = dict(timm.create_model(name, num_classes=2, **NETWORKS[name]).state_dict())
    args = dict(
        model=name, num_classes=2, in_chans=None, input_size=[3, 32, 32], img_size=None, crop_pct=0.9, mean=[0.5] * 3
    )
    args |= dict(std=None, interpolation="bicubic", input_img_mode=None, gp=None, class_map="", bn_eps=None, epochs=3)
    args |= dict(opt="adamw", lr=1e-3, sched="cosine", aa=None, scale=[0.08, 1.0], model_ema=True, model_ema_decay=0.9)
    args |= dict(model_kwargs=NETWORKS[name] | dict(drop_path_rate=0.1))
    averaged = {key: value.clone() for key, value in state_dict.items()}
    return dict(epoch=1, arch=name, state_dict=state_dict, state_dict_ema=averaged, args=args, version=2, metric=0.5)


def simulate_predictions(rng: np.random.Generator) -> str:
    """A table of predictions for images of two classes, three in four of them right, two of each patient."""
    lines = [f"file,class,group,predicted,{','.join(f'p_{name}' for name in COVID_CLASSES)}"]
    for i in range(24):
        first = 0.5 + (0.5 - i % 2) * rng.uniform(-0.3, 0.9)
        lines.append(
            f"val/{COVID_CLASSES[i % 2]}/{i}.png,{COVID_CLASSES[i % 2]},{i // 2},x,{first:.9g},{1 - first:.9g}"
        )
    return "\n".join([*lines, ""])


def read_miniature(tag: str) -> dict[str, dict[str, bytes]]:
    """The files of a miniature dataset: those of each archive under its path, the others under an empty one."""
    with tempfile.TemporaryDirectory() as folder:
        MINIATURES[tag](Path(folder), per_class=8)
        found = {"": {}}
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    found[name] = {info.filename: archive.read(info) for info in archive.infolist()}
            else:
                found[""][name] = path.read_bytes()
        return found


# Changes


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped, set, cut, put in or doubled bytes, as often at either end, where headers and tables are, as within."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        at = rng.choice((rng.randrange(len(data) + 1), rng.randrange(400), max(0, len(data) - rng.randrange(400))))
        piece = slice(at, at + rng.choice((1, 2, 4, 100)))
        data[piece] = rng.choice(
            (
                bytes(byte ^ 1 << rng.randrange(8) for byte in data[piece]),
                bytes([rng.choice((0, 1, 127, 128, 255))]) * len(data[piece]),
                b"",
                rng.randbytes(rng.choice((1, 4, 100))) + data[piece],
                data[piece] * 2,
            )
        )
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def odd_value(rng: random.Random) -> object:
    """A plain value of another kind or out of range."""
    return rng.choice(
        (
            rng.choice(TEXTS),
            rng.choice(TEXTS),
            rng.choice(NUMBERS),
            rng.choice(NUMBERS),
            rng.choice((None, [], {}, [1], ["a"], [None], [[]], [1, 2, 3], {"a": 1}, {"": None}, [0.9, 0.1], OPENED)),
            [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 2000)))],
            {rng.choice(TEXTS): rng.choice(NUMBERS)},
        )
    )


def odd_object(rng: random.Random) -> object:
    """A value that only a pickle has."""
    endless = []
    endless.append(endless)
    return rng.choice(
        (
            *(
                b"a",
                {1, 2},
                1j,
                (1, 2),
                {1: 2},
                "\udcff",
                endless,
                Trap(),
                torch.float32,
                torch.Size([1]),
                np.float32(1),
            ),
            *(torch.tensor(1.0), torch.zeros(2, 0), argparse.Namespace(a=1)),
        )
    )


def odd_tensor(value: torch.Tensor, rng: random.Random) -> object:
    """A tensor of another shape, dtype, layout or content."""
    shape = list(value.shape)
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 5, 4096))
    return rng.choice(
        (
            lambda: torch.ones(()),
            lambda: value.flatten(),
            lambda: value[None],
            lambda: torch.zeros(1).expand(shape),
            lambda: torch.zeros(1).expand(2**40),
            lambda: value.to(rng.choice((torch.int64, torch.bool, torch.uint8, torch.float16, torch.complex64))),
            lambda: value.to(rng.choice((torch.float8_e4m3fn, torch.bfloat16, torch.float64))),
            lambda: value.float() * rng.choice((math.nan, math.inf, 0, 1e38)),
            lambda: value.to("meta"),
            lambda: value.to_sparse(),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: torch.nn.Parameter(value.float()),
            lambda: value.mT,
        )
    )()


def change_tree(tree: dict | list, rng: random.Random, odd: Callable[[random.Random], object]) -> None:
    """Change a value, a key or the number of values anywhere in nested dicts and lists."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(tree[key], dict | list) or not tree[key] or rng.random() < 0.1:
            break
        tree = tree[key]
    change = rng.randrange(8)
    if change == 0:
        del tree[key]
    elif change == 1 and isinstance(tree, dict):
        tree[rng.choice((*TEXTS, *OPENED, "kind", f"module.{key}", f"{key}.weight"))] = tree.pop(key)
    elif change == 2:
        tree[key] = copy.copy(tree[rng.choice(keys)])
    elif change == 3 and isinstance(tree, dict):
        tree[rng.choice((*TEXTS, *OPENED, "url", "weights"))] = odd(rng)
    elif change < 7 and isinstance(tree[key], torch.Tensor):
        try:
            tree[key] = odd_tensor(tree[key], rng)
        except (RuntimeError, NotImplementedError, IndexError):  # not every tensor can be every one
            tree[key] = torch.ones(())
    else:
        tree[key] = odd(rng)


def change_text(text: str, rng: random.Random) -> bytes:
    """Lines and cells of a list that are missing, doubled, moved or odd; other separators and encodings."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        cells[rng.randrange(len(cells))] = str(rng.choice((*TEXTS, *NUMBERS[:5], "a" * 200_000)))
        lines[at : at + 1] = rng.choice(
            ([], [lines[at]] * 2, [rng.choice(lines)], [",".join(cells)], [",".join(cells)], [",".join(cells)], [""])
        ) or ([""] if len(lines) == 1 else [])
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\0", ";")).join(lines)
    encoded = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")
    return change_bytes(encoded, rng) if encoded and rng.random() < 0.2 else encoded


# Files


def save_pickle(content: object, path: Path, **options) -> None:
    """Save what a checkpoint holds as train.py does."""
    if isinstance(content, dict) and isinstance(args := content.get("args"), dict):
        namespace = argparse.Namespace()
        vars(namespace).update(args)
        content = content | dict(args=namespace)
    torch.save(content, path, **options)


def save_checkpoint(content: dict, path: Path, rng: random.Random) -> None:
    """Save as safetensors, as a zip or as an old pickle of torch, or as a bare pickle."""
    form = rng.randrange(8)
    try:
        if path.suffix == ".safetensors":
            path.write_bytes(save(next(value for value in content.values() if isinstance(value, dict))))
        elif form == 0:
            path.write_bytes(pickle.dumps(content))
        else:
            save_pickle(content, path, _use_new_zipfile_serialization=form > 1)
    except Exception:  # what cannot be saved so is another input
        path.write_bytes(rng.randbytes(500))


def encode_image(rng: random.Random) -> bytes:
    """An image of any format and mode, those that are refused among them."""
    if rng.random() < 0.3:
        return encode_dicom(rng)
    shape = rng.choice(((12, 16),) * 9 + ((1, 1), (1, 200_000), (200_000, 1)))
    pixels = np.random.default_rng(rng.randrange(100)).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    form = rng.choice(("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "EPS", "TGA", "ICO"))
    mode = rng.choice(("RGB", "L", "P", "RGBA", "I;16", "1", "CMYK", "F", "LA"))
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 99) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 9, 0))
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {}))
    except Exception:  # not every format has every mode and size
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, form if max(shape) < 256 else "PNG")
    content = buffer.getvalue()
    return claim_size(content, rng) if form == "PNG" and rng.random() < 0.2 else content


def claim_size(png: bytes, rng: random.Random) -> bytes:
    """The PNG with another width and height in its header, whose checksum is right."""
    size = struct.pack(">II", *(rng.choice((0, 1, 17, 2**15, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
    header = png[12:16] + size + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


DICOM_VALUES = dict(
    Rows=(0, 1, 65535, 11),
    Columns=(0, 1, 65535, 17),
    SamplesPerPixel=(0, 3, 4),
    BitsAllocated=(0, 1, 7, 8, 32, 64),
    BitsStored=(0, 3, 99),
    HighBit=(0, 40),
    PixelRepresentation=(0, 1, 2),
    PlanarConfiguration=(1, 2),
    PhotometricInterpretation=("MONOCHROME1", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "HSV", ""),
    NumberOfFrames=(0, 2, 1000000, -1),
    RescaleSlope=(0, -1, 1e30, ""),
    RescaleIntercept=(1e30, -1024),
    WindowCenter=(0, 1e30, [1, 2]),
    WindowWidth=(0, -5, 1, [0, 1]),
    VOILUTFunction=("SIGMOID", "LINEAR_EXACT", "X"),
    PixelData=(b"", b"\0\0", b"\0" * 4096),
)


def encode_dicom(rng: random.Random) -> bytes:
    """A DICOM file, up to three of whose attributes are odd."""
    names = rng.sample(sorted(DICOM_VALUES), rng.randrange(4))
    attributes = {name: rng.choice(DICOM_VALUES[name]) for name in names}
    pixels = np.random.default_rng(0).integers(0, 4096, (12, 16)).astype(rng.choice((np.uint8, np.uint16, np.int16)))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on such attributes
        try:
            write_dicom(buffer, pixels, **attributes)
        except Exception:  # of attributes that pydicom does not write
            buffer = io.BytesIO()
            write_dicom(buffer, pixels)
    return buffer.getvalue()


# Kinds of inputs


def evaluate_data(data: Path, output: Path | str, checkpoint: Path, model: str = "hifuse_tiny") -> Command:
    options = ["--json", str(output), "--workers", "0", "--device", "cpu", "--resamples", "2"]
    where = ["--model", model, "--checkpoint", str(checkpoint), "--data-dir", str(data)]
    return Command(["evaluate", *where, *options], str(output))


def explain_images(images: list[str], checkpoint: Path, model: str = "hifuse_tiny") -> Command:
    options = ["--model", model, "--checkpoint", str(checkpoint), "--device", "cpu", "--out", "out.png"]
    return Command(["explain", *images, *options], "out.png")


def predict_images(images: list[str], checkpoint: Path) -> Command:
    options = ["--model", "hifuse_tiny", "--checkpoint", str(checkpoint), "--classes", *COVID_CLASSES]
    options += ["--workers", "0", "--device", "cpu", "--csv", "out.csv"]
    return Command(["predict", *images, *options], "out.csv", partial=True)


def publish_metrics(checkpoint: Path, *options: str) -> Command:
    network = ["--model", "hifuse_tiny", "--checkpoint", str(checkpoint), "--dataset", "covid19ct"]
    return Command(["publish", *network, *options, "--dry-run", "out"], "out")


def fuzz_checkpoint(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Weights, what is beside them, and their file."""
    name = rng.choice(("hifuse_tiny", "hifuse_tiny", "hifuse_tiny", "convnext_atto", "authors"))
    content = copy.deepcopy(originals.checkpoints[name])
    if rng.random() < 0.3:
        content.pop("state_dict_ema", None)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        focus = rng.choice([content, *(value for value in content.values() if isinstance(value, dict))])
        change_tree(focus, rng, rng.choice((odd_value, odd_object)))
    args = content.get("args")
    kwargs = args.get("model_kwargs") if isinstance(args, dict) else None
    if isinstance(kwargs, dict) and rng.random() < 0.15:
        kwargs.update((key, OPENED[key]) for key in rng.sample(list(OPENED), rng.choice((1, 2, len(OPENED)))))
    path = folder / ("in" + rng.choice((".pth.tar", ".pth.tar", ".safetensors")))
    save_checkpoint(content, path, rng)
    if rng.random() < 0.3:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    draw = rng.random()
    if name == "authors" or draw < 0.3:
        return Command(["convert", path.name, "out.safetensors"], "out.safetensors")
    if draw < 0.65 or (name != "hifuse_tiny" and draw < 0.9):
        return evaluate_data(originals.folder / "data", "out.json", Path(path.name), name)
    if draw < 0.9:
        return publish_metrics(Path(path.name))
    return explain_images([str(originals.folder / "data/test/CT_COVID/0.png")], Path(path.name), name)


def fuzz_archive(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Archives and folders as downloaded: names, contents and the bytes of the archive."""
    tag = rng.choice(list(originals.datasets))
    source = {name: dict(members) for name, members in originals.datasets[tag].items()}
    changed = rng.choice([name for name in source if name])
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        change_members(source[changed], rng)
    write_source(source, folder / "source", rng, changed)
    return prepare_source(tag, rng)


def change_members(members: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice(list(members))
    odd_name = rng.choice(
        (rng.choice(TEXTS), f"../{name}", f"/{name}", f"{name}/", f"{name}.JPG", f"a/{name}", "a\udcff")
    )
    content = (
        b"",
        rng.randbytes(100),
        encode_image(rng),
        change_bytes(members[name], rng),
        rng.choice(list(members.values())),
    )
    rng.choice(
        (
            lambda: members.pop(name),
            lambda: members.update({odd_name: members.pop(name)}),
            lambda: members.update({odd_name: members[name]}),
            lambda: members.update({name: rng.choice(content)}),
            lambda: members.update({name.rsplit("/", 1)[0] + "/" + rng.choice(TEXTS): rng.choice(content)}),
        )
    )()
    members.setdefault("a", b"")


def write_source(source: dict[str, dict[str, bytes]], root: Path, rng: random.Random, changed: str) -> None:
    """Write what was downloaded; of archives, one may be unpacked, and one has an odd member or odd bytes."""
    root.mkdir()
    unpacked = changed if rng.random() < 0.4 else None
    for archive, members in source.items():
        path = root / archive
        path.parent.mkdir(parents=True, exist_ok=True)
        if archive in ("", unpacked):
            write_folder(path.parent if archive else root, members, rng, odd=archive == unpacked)
        else:
            write_archive(path, members, rng, odd=archive == changed)


def write_folder(root: Path, members: dict[str, bytes], rng: random.Random, odd: bool) -> None:
    for name, content in members.items():
        if name.endswith("/"):
            continue
        path = Path(os.path.normpath(root / name.lstrip("/")))
        try:
            path.relative_to(root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (OSError, ValueError):  # a name that no folder holds
            continue
        draw = rng.random()
        if odd and draw < 0.02:
            path.unlink()
            path.symlink_to(rng.choice((SECRET, ".", "/dev/zero", "missing", path.name)))
        elif odd and draw < 0.03:
            path.unlink()
            os.mkfifo(path)


def write_archive(path: Path, members: dict[str, bytes], rng: random.Random, odd: bool) -> None:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in members.items():
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "a")
            info.compress_type = zipfile.ZIP_DEFLATED
            if odd and rng.random() < 0.02:
                info.external_attr = rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR)) << 16
            archive.writestr(info, content)
            if odd and rng.random() < 0.01:
                info.file_size = rng.choice((0, 1, 2**31, 2**40))
                info.CRC ^= rng.randrange(2)
            if odd and rng.random() < 0.01:
                archive.writestr(copy.copy(info), content)
    if odd and rng.random() < 0.3:
        path.write_bytes(change_bytes(path.read_bytes(), rng))


def prepare_source(tag: str, rng: random.Random) -> Command:
    options = ["--allow-incomplete"] if rng.random() < 0.9 else []
    options += ["--split", rng.choice(("official", "paper"))] if tag == "covid19ct" else ["--val-share", "0.4"]
    if tag == "isic2018" and rng.random() < 0.5:
        options += ["--group-by", "lesion"]
    return Command(["prepare", tag, "--source", "source", "--out", "out", *options], "out")


def fuzz_list(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Tables and lists of datasets, dataset.json and class maps."""
    draw = rng.random()
    if draw < 0.5:
        tag = rng.choice(("isic2018", "covid19ct"))
        source = {name: dict(members) for name, members in originals.datasets[tag].items()}
        lists = [
            (a, m)
            for a, members in source.items()
            for m in members
            if m.endswith((".csv", "NonCOVID.txt", "CT_COVID.txt"))
        ]
        archive, name = rng.choice(lists)
        source[archive][name] = change_text(source[archive][name].decode(), rng)
        write_source(source, folder / "source", random.Random(0), archive or next(filter(None, source)))
        return prepare_source(tag, rng)
    data = originals.copy_data(folder)
    if draw < 0.6:
        files = sorted(path.relative_to(data).as_posix() for path in (data / "test").rglob("*.png"))
        rows = [f"{file},{file.split('/')[1]},test,{i // 2},{i}" for i, file in enumerate(files)]
        (data / "splits.csv").write_bytes(change_text("\n".join(["file,class,split,group,age", *rows]), rng))
        evaluation = evaluate_data(Path("data"), "out.json", originals.folder / "sound.pth.tar")
        evaluation.arguments.extend(rng.choice(([], ["--by", "age:1,2"], ["--group-column", "age"])))
        return evaluation
    if draw < 0.75:
        write_json(data / "dataset.json", json.loads((data / "dataset.json").read_text()), rng)
        return evaluate_data(Path("data"), "out.json", originals.folder / "sound.pth.tar")
    (folder / "map.txt").write_bytes(change_text("\n".join(COVID_CLASSES), rng))
    content = copy.deepcopy(originals.checkpoints["hifuse_tiny"])
    content["args"]["class_map"] = rng.choice(("map.txt", "map.txt", "map.txt", rng.choice(TEXTS)))
    save_pickle(content, folder / "in.pth.tar")
    return evaluate_data(Path("data"), "out.json", Path("in.pth.tar"))


def write_json(path: Path, content: dict, rng: random.Random) -> None:
    """Write an object with odd values, or as odd text."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        change_tree(content, rng, odd_value)
    text = json.dumps(content)
    if rng.random() < 0.15:
        odd = rng.choice(
            ("[" * 100_000, '{"a":' * 5000, "9" * 5000, "1e400", '"\\ud800"', text + text, "", "nul", "{,}")
        )
        at = rng.choice((0, text.find(": ") + 2))
        text = rng.choice((odd, text[:at] + odd + text[text.find(",", at) :]))
    data = text.encode()
    path.write_bytes(change_bytes(data, rng) if data and rng.random() < 0.15 else data)


def fuzz_image(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Images and DICOM files, whatever they are called."""
    content = encode_image(rng)
    if rng.random() < 0.6:
        content = change_bytes(content, rng)
    name = rng.choice(("in.png", "in.jpg", "in.jpeg", "$x$.png", "a\nb.png", "\udcff.png", "in.dcm", "in"))
    sound = originals.folder / "sound.pth.tar"
    draw = rng.random()
    if draw < 0.6:
        data = originals.copy_data(folder)
        (data / "test/CT_COVID" / name).write_bytes(content)
        return evaluate_data(Path("data"), "out.json", sound)
    (folder / name).write_bytes(content)
    images = [name, str(originals.folder / "data/test/CT_COVID/0.png")][: rng.choice((1, 2))]
    return predict_images(images, sound) if draw < 0.8 else explain_images(images, sound)


def fuzz_run(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Files of runs, averages and metrics, of predictions, and of calibrations."""
    if rng.random() < 0.3:
        (folder / "in.csv").write_bytes(change_text(originals.predictions, rng))
        tables = ["in.csv", str(originals.folder / "predictions.csv")]
        return Command(["compare", *rng.sample(tables, 2), "--resamples", "9", "--json", "out.json"], "out.json")
    if rng.random() < 0.4:
        return fuzz_calibration(originals, folder, rng)
    average = rng.random() < 0.2
    write_json(folder / "in.json", originals.average if average else originals.run, rng)
    if rng.random() < 0.4:
        table = str(originals.folder / "predictions.csv")
        return Command(["report", "in.json", "--predictions", table, "--out", "out.html"], "out.html")
    if average or rng.random() < 0.5:
        return publish_metrics(originals.folder / "sound.pth.tar", "--metrics", "in.json")
    return Command(["average", "in.json", str(originals.folder / "other.json"), "--json", "out.json"], "out.json")


def fuzz_calibration(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """Calibrations, and the tables of predictions that they are fitted to."""
    if rng.random() < 0.4:
        (folder / "in.csv").write_bytes(change_text(originals.validation, rng))
        options = ["--out", "out.json", "--undecided-share", "0.5", "--resamples", "9"]
        return Command(["calibrate", "--predictions", "in.csv", *options], "out.json")
    write_json(folder / "in.json", originals.calibration, rng)
    data, sound = originals.folder / "data", originals.folder / "sound.pth.tar"
    command = rng.choice(
        (
            evaluate_data(data, "out.json", sound),
            predict_images([str(data / "test/CT_COVID/0.png")], sound),
            publish_metrics(sound),
        )
    )
    command.arguments.extend(["--calibration", "in.json"])
    return command


def fuzz_published(originals: Originals, folder: Path, rng: random.Random) -> Command:
    """What somebody published: its config.json, and its weights."""
    (folder / "in").mkdir()
    weights = originals.published["model.safetensors"]
    (folder / "in/model.safetensors").write_bytes(change_bytes(weights, rng) if rng.random() < 0.1 else weights)
    config = json.loads(originals.published["config.json"])
    for name, entries in (("pretrained_cfg", SOURCES), ("model_args", OPENED)):
        config[name] |= {key: entries[key] for key in rng.sample(list(entries), rng.choice((0, 0, 0, 1, 3)))}
    write_json(folder / "in/config.json", config, rng)
    evaluation = evaluate_data(originals.folder / "data", "out.json", Path("in"), "local-dir:in")
    at = evaluation.arguments.index("--checkpoint")
    evaluation.arguments[at : at + 2] = ["--pretrained"]
    return evaluation


KINDS = {
    "checkpoint": fuzz_checkpoint,
    "archive": fuzz_archive,
    "list": fuzz_list,
    "image": fuzz_image,
    "run": fuzz_run,
    "published": fuzz_published,
}
