"""Miniatures of the paper's three datasets, in the exact layout in which their providers publish them.

From a test, a call writes one and returns its folder, the `--source` of `python -m hifuse_timm prepare`:

    write_isic2018(root), write_covid19ct(root), write_kvasir(root)
    MINIATURES[tag](root, per_class=24, zipped=True, seed=0)  # or a number for each class: {"polyps": 20, ...}

As a script, `python tests/miniatures.py {isic2018,covid19ct,kvasir} DIR [--per-class 24] [--unpacked] [--seed 0]`.

A miniature is sound but for its size: `prepare` names the images that it lacks, and goes on with `--allow-incomplete`.
Classes differ in the direction, width and contrast of stripes, and in hue where an image has colour, so that a small
network tells them apart after some epochs. Tests that need a fault damage a miniature.
"""

import argparse
import csv
import io
import random
import uuid
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ISIC_COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
COVID_CLASSES = ("CT_COVID", "CT_NonCOVID")
COVID_SPLITS = ("train", "val", "test")
COVID_LIST_ENDS = {"CT_COVID": (191 / 349, 251 / 349), "CT_NonCOVID": (234 / 397, 292 / 397)}
KVASIR_CLASSES = (
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis",
    "normal-cecum",
    "normal-pylorus",
    "normal-z-line",
    "polyps",
    "ulcerative-colitis",
)
_ISIC_CONFIRMATIONS = (
    "histopathology",
    "serial imaging showing no change",
    "single image expert consensus",
    "confocal microscopy with consensus dermoscopy",
)


def paint(index: int, num_classes: int, size: tuple[int, int], mode: str, rng: np.random.Generator) -> Image.Image:
    """An image of a class, (width, height) pixels of mode L, RGB or RGBA, different for each draw."""
    width, height = size
    share = index / num_classes
    x, y = np.meshgrid(np.arange(width) / height, np.arange(height) / height)
    angle = np.pi * share + rng.normal(0, 0.05)
    waves = np.sin(2 * np.pi * ((4 + 2 * (index % 3)) * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()))
    stripes = 0.5 + (0.2 + 0.2 * (index % 2)) * waves
    hue = 2 * np.pi * (share + np.arange(3) / 3) if mode != "L" else np.zeros(3)
    pixels = stripes[..., None] * (0.6 + 0.4 * np.cos(hue)) + rng.normal(0, 0.04, (height, width, 3))
    image = Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8), "RGB").convert(mode)
    if mode == "RGBA":
        image.putalpha(int(rng.integers(200, 256)))
    return image


def encode(image: Image.Image, suffix: str) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    if suffix == ".png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_isic2018(root: Path, per_class: int | dict[str, int] = 24, zipped: bool = True, seed: int = 0) -> Path:
    """ISIC 2018 task 3: images and ground truth as two archives, and the CSV of lesions beside them.

    Lesions have one to three images, half of them one.
    """
    rng, choice = np.random.default_rng(seed), random.Random(seed)
    counts = _counts(ISIC_COLUMNS, per_class)
    labels = [column for column in ISIC_COLUMNS for _ in range(counts[column])]
    choice.shuffle(labels)
    names = [f"ISIC_{24306 + i:07}" for i in range(len(labels))]

    images, truth, lesions = {}, [["image", *ISIC_COLUMNS]], [["image", "lesion_id", "diagnosis_confirm_type"]]
    lesion_count, open_lesions = 0, {}
    for name, label in zip(names, labels, strict=True):
        size = (96, 72) if rng.random() < 0.8 else (80, 72)
        images[f"{name}.jpg"] = encode(paint(ISIC_COLUMNS.index(label), 7, size, "RGB", rng), ".jpg")
        truth.append([name, *(f"{float(label == column)}" for column in ISIC_COLUMNS)])
        lesion, room = open_lesions.get(label, (None, 0))
        if room == 0:
            lesion, room = f"HAM_{lesion_count:07}", choice.choice((1, 1, 2, 3))
            lesion_count += 1
        open_lesions[label] = lesion, room - 1
        lesions.append([name, lesion, choice.choice(_ISIC_CONFIRMATIONS)])

    licence = {"LICENSE.txt": b"CC BY-NC 4.0\n"}
    stem = "ISIC2018_Task3_Training_"
    _write_part(root, f"{stem}Input", images | licence | {"ATTRIBUTION.txt": b"HAM10000\n"}, zipped)
    _write_part(root, f"{stem}GroundTruth", {f"{stem}GroundTruth.csv": _encode_csv(truth)} | licence, zipped)
    (root / f"{stem}LesionGroupings.csv").write_bytes(_encode_csv(lesions))
    return root


def write_covid19ct(root: Path, per_class: int | dict[str, int] = 24, zipped: bool = True, seed: int = 0) -> Path:
    """COVID19-CT: a clone of the provider's repository, archives made on a Mac, and the six split lists.

    Grey, RGB and RGBA, PNG and JPEG, from 143x76 on; names with spaces and percent signs. The lists have the shares of
    the provider's: with 349 and 397 images, their sizes.
    """
    rng = np.random.default_rng(seed)
    (root / "Images-processed").mkdir(parents=True, exist_ok=True)
    (root / "README.md").write_text("# COVID-CT\n")
    for index, class_name in enumerate(COVID_CLASSES):
        images = {}
        count = _counts(COVID_CLASSES, per_class)[class_name]
        for i in range(count):
            if index == 0:
                name = (f"2020.02.{10 + i % 19}.200{i:05}-p{i % 30}-{i}.png", f"Hellwan case {i}.jpg")[i % 4 == 1]
            else:
                name = (f"{i}%{i % 3}.jpg", f"{600 + i}.png")[i % 4 == 0]
            suffix = Path(name).suffix
            mode = ("RGB", "L", "RGBA" if suffix == ".png" else "RGB")[i % 3]
            size = (143, 76) if i == 0 else tuple(rng.integers((100, 80), (180, 140)).tolist())
            images[name] = encode(paint(index, 2, size, mode, rng), suffix)

        junk = {".DS_Store": b"\0\0\0\1Bud1"}
        mac = {f"__MACOSX/{class_name}/._{name}": b"\0\5\26\7" for name in images}
        _write_part(root / "Images-processed", class_name, images | junk, zipped, mac)

        short = class_name.removeprefix("CT_")
        names = sorted(images)
        random.Random(seed).shuffle(names)
        ends = (0, *(round(count * end) for end in COVID_LIST_ENDS[class_name]), count)
        folder = root / "Data-split" / short
        folder.mkdir(parents=True)
        for split, start, stop in zip(COVID_SPLITS, ends, ends[1:], strict=False):
            (folder / f"{split}CT_{short}.txt").write_text("".join(f"{name}\n" for name in names[start:stop]))
    return root


def write_kvasir(root: Path, per_class: int | dict[str, int] = 24, zipped: bool = True, seed: int = 0) -> Path:
    """Kvasir v1: one archive with a folder a class, of two shapes of images."""
    rng, choice = np.random.default_rng(seed), random.Random(seed)
    images = {}
    for index, class_name in enumerate(KVASIR_CLASSES):
        for i in range(_counts(KVASIR_CLASSES, per_class)[class_name]):
            name = f"{class_name}/{uuid.UUID(int=choice.getrandbits(128), version=4)}.jpg"
            images[name] = encode(paint(index, 8, ((90, 72), (128, 72))[i % 3 == 0], "RGB", rng), ".jpg")
    _write_part(root, "kvasir-dataset", images, zipped)
    return root


MINIATURES = {"isic2018": write_isic2018, "covid19ct": write_covid19ct, "kvasir": write_kvasir}


def _counts(classes: tuple[str, ...], per_class: int | dict[str, int]) -> dict[str, int]:
    return per_class if isinstance(per_class, dict) else dict.fromkeys(classes, per_class)


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    """Write an archive of these members, in this order."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _write_part(root: Path, name: str, files: dict[str, bytes], zipped: bool, beside: dict[str, bytes] | None = None):
    """Write files as the folder `name`, or as an archive that holds that folder and what else lies beside it."""
    root.mkdir(parents=True, exist_ok=True)
    if zipped:
        inside = {f"{name}/": b""} | {f"{name}/{path}": content for path, content in files.items()}
        write_zip(root / f"{name}.zip", inside | (beside or {}))
        return
    for path, content in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(content)


def _encode_csv(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a miniature of a dataset in its provider's layout.")
    parser.add_argument("tag", choices=MINIATURES, help="the dataset")
    parser.add_argument("root", type=Path, metavar="DIR", help="a new folder to write it into")
    parser.add_argument("--per-class", type=int, default=24, metavar="N", help="images a class (default: 24)")
    parser.add_argument("--unpacked", action="store_true", help="folders instead of archives")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()
    MINIATURES[args.tag](args.root, args.per_class, not args.unpacked, args.seed)
