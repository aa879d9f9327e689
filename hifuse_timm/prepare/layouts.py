"""What the providers of the paper's datasets publish: which images there are, of which class, in which split.

Section 4.1 of the paper has the numbers of images; those of the official lists of COVID19-CT are the provider's.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..datasets import DATASETS
from .archives import Finding, Part, SourceFile, find_part, is_image

__all__ = ["COUNTS", "OFFICIAL_COUNTS", "SPLITS", "Inventory", "Sample", "read_layout"]

SPLITS = ("train", "val", "test")

# Images a class.
COUNTS = {
    "isic2018": {"AKIEC": 327, "BCC": 514, "BKL": 1099, "DF": 115, "MEL": 1113, "NV": 6705, "VASC": 142},
    "covid19ct": {"CT_COVID": 349, "CT_NonCOVID": 397},
    "kvasir": dict.fromkeys(DATASETS["kvasir"].labels, 500),
}
# Of COVID19-CT, as (train, val, test).
OFFICIAL_COUNTS = {"CT_COVID": (191, 60, 98), "CT_NonCOVID": (234, 58, 105)}

_ISIC_IMAGES = "ISIC2018_Task3_Training_Input"
_ISIC_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
_ISIC_LESIONS = "ISIC2018_Task3_Training_LesionGroupings"
_ISIC_TEXTS = {"ATTRIBUTION.txt", "LICENSE.txt"}


@dataclass
class Sample:
    """An image with its class.

    Attributes:
        file: Where its content comes from.
        label: Its class.
        group: What stays in one split with it: its lesion, or itself.
        split: Its split in the provider's lists, None without those.
        checksum: SHA-256 of the file.
        content: SHA-256 of its size and its RGB values.
    """

    file: SourceFile
    label: str
    group: str
    split: str | None = None
    checksum: str = ""
    content: str = ""

    @property
    def name(self) -> str:
        return self.file.path.name

    def __str__(self) -> str:
        return f"{self.label}/{self.name}"


@dataclass
class Inventory:
    """What a source holds.

    Attributes:
        samples: Images whose class, and split where it is the provider's, is known.
        findings: What is wrong or notable.
        parts: Names of the folders and archives read.
    """

    samples: list[Sample] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def report(self, kind: str, message: str, files: Iterable[str], error: bool = True) -> None:
        """Add a finding about these files, if there are any."""
        if files := tuple(sorted(files)):
            self.findings.append(Finding(kind, message, files, error))

    def add(self, *parts: Part) -> None:
        """Note parts that are read, with their findings."""
        for part in parts:
            self.parts.append(part.location.name)
            self.findings += part.findings


def read_layout(tag: str, source: Path, stack: ExitStack, group_by: str | None, split: str | None) -> Inventory:
    """List the images of a dataset, without opening any.

    Args:
        tag: The dataset.
        source: The provider's archives or folders.
        stack: Takes archives that stay open for reading.
        group_by: `lesion` to group the images of ISIC 2018.
        split: `official` to read the provider's lists of COVID19-CT.

    Raises:
        FileNotFoundError: If a part is missing; names all that are.
        ValueError: If a part is damaged or of another form.
    """
    if tag == "isic2018":
        return _read_isic2018(source, stack, group_by == "lesion")
    if tag == "covid19ct":
        return _read_covid19ct(source, stack, split == "official")
    return _read_kvasir(source, stack)


def _read_isic2018(source: Path, stack: ExitStack, by_lesion: bool) -> Inventory:
    parts = {
        _ISIC_IMAGES: find_part(source, _ISIC_IMAGES, stack),
        _ISIC_TRUTH: _find_table(source, _ISIC_TRUTH, stack),
    }
    if by_lesion:
        parts[_ISIC_LESIONS] = _find_table(source, _ISIC_LESIONS, stack)
    _check_all_found(source, parts)
    inventory = Inventory()
    inventory.add(*parts.values())
    images = parts[_ISIC_IMAGES].files

    labels = list(DATASETS["isic2018"].labels)
    label_of, invalid, repeated = {}, set(), set()
    for row in _read_table(parts[_ISIC_TRUTH], _ISIC_TRUTH, ["image", *labels]):
        name = row["image"]
        ones = [label for label in labels if row[label] in ("1", "1.0")]
        zeros = [label for label in labels if row[label] in ("0", "0.0")]
        if name in label_of or name in invalid:
            repeated.add(name)
        elif len(ones) == 1 and len(zeros) == len(labels) - 1:
            label_of[name] = ones[0]
        else:
            invalid.add(name)
    inventory.report("invalid-label", "rows of the ground truth that are not one-hot: left out", invalid)
    inventory.report("repeated-label", "images with several rows in the ground truth: left out", repeated)

    lesion_of = {name: f"{label}/{name}.jpg" for name, label in label_of.items()}
    if by_lesion:
        rows = _read_table(parts[_ISIC_LESIONS], _ISIC_LESIONS, ["image", "lesion_id"])
        lesion_of = {row["image"]: row["lesion_id"] for row in rows if row["lesion_id"]}
        without = label_of.keys() - lesion_of.keys()
        inventory.report("image-without-lesion", "images that the lesion groupings do not name: left out", without)

    for name in sorted(label_of.keys() & lesion_of.keys() - repeated):
        if f"{name}.jpg" in images:
            inventory.samples.append(Sample(images[f"{name}.jpg"], label_of[name], lesion_of[name]))
    named = {f"{name}.jpg" for name in label_of.keys() | invalid}
    missing, surplus = named - set(images), set(images) - named - _ISIC_TEXTS
    inventory.report("label-without-image", "images that the ground truth names and that are missing", missing)
    _report_surplus(inventory, "image-without-label", surplus, "in no row of the ground truth")
    return inventory


def _read_covid19ct(source: Path, stack: ExitStack, official: bool) -> Inventory:
    labels = DATASETS["covid19ct"].labels
    parts = {label: find_part(source, label, stack, within=["Images-processed"]) for label in labels}
    lists = {}
    for label in labels if official else ():
        short = label.removeprefix("CT_")
        for split in SPLITS:
            name = f"{split}CT_{short}.txt"
            lists[name] = _find_file(source, name, [f"Data-split/{short}", short, "."])
    _check_all_found(source, parts | lists)
    inventory = Inventory()
    inventory.add(*parts.values(), *lists.values())

    for label, part in parts.items():
        images = {path: file for path, file in part.files.items() if is_image(path) and len(file.path.parts) == 1}
        _report_surplus(inventory, "misplaced-image", set(part.files) - set(images), f"not directly in {label}")
        if not official:
            inventory.samples += [Sample(file, label, f"{label}/{path}") for path, file in images.items()]
            continue

        listed = []
        for split in SPLITS:
            name = f"{split}CT_{label.removeprefix('CT_')}.txt"
            listed += [(line.strip(), split) for line in lists[name].read_text(name).splitlines() if line.strip()]
        unlisted = images.keys() - {name for name, _ in listed}
        splits_of, renamed, missing = defaultdict(list), [], []
        for name, split in listed:
            path = name if name in images else _find_other_suffix(name, unlisted)
            if path is None:
                missing.append(f"{label}/{name}")
                continue
            if path != name:
                renamed.append(f"{label}/{name}")
            splits_of[path].append(split)
        repeated = [f"{label}/{path}" for path, splits in splits_of.items() if len(set(splits)) > 1]
        surplus = [f"{label}/{path}" for path in images.keys() - splits_of.keys()]
        inventory.report("label-without-image", "images that a split list names and that are missing", missing)
        inventory.report("image-without-label", "images that no split list names: left out", surplus)
        message = "images that several split lists name: kept in the last of them (train, val, test)"
        inventory.report("several-splits", message, repeated)
        message = "listed names whose file has another suffix: that file was taken"
        inventory.report("other-suffix", message, renamed, error=False)
        for path, splits in splits_of.items():
            inventory.samples.append(Sample(images[path], label, f"{label}/{path}", max(splits, key=SPLITS.index)))
    return inventory


def _read_kvasir(source: Path, stack: ExitStack) -> Inventory:
    labels = DATASETS["kvasir"].labels
    part = find_part(source, "kvasir-dataset", stack)
    if part is None and any((source / label).is_dir() for label in labels):
        part = Part(source)
        for label in labels:
            folder = find_part(source, label, stack)
            if folder is not None:
                part.findings += folder.findings
                for file in folder.files.values():
                    inside = SourceFile(label / file.path, file.read, file.origin)
                    part.files[str(inside.path)] = inside
    _check_all_found(source, {"kvasir-dataset": part})
    inventory = Inventory()
    inventory.add(part)
    surplus = set()
    for path, file in part.files.items():
        label = file.path.parts[0]
        if len(file.path.parts) == 2 and label in labels and is_image(path):
            inventory.samples.append(Sample(file, label, path))
        else:
            surplus.add(path)
    _report_surplus(inventory, "misplaced-image", surplus, "not directly in one of the eight folders of classes")
    return inventory


def _report_surplus(inventory: Inventory, kind: str, paths: set[str], where: str) -> None:
    """Add findings about files that the provider's form does not have."""
    images = {path for path in paths if is_image(path)}
    inventory.report(kind, f"images that are {where}: left out", images)
    message = "files that the provider does not publish here: left out"
    inventory.report("surplus-file", message, paths - images, error=False)


def _check_all_found(source: Path, parts: dict[str, Part | None]) -> None:
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise FileNotFoundError(
            f"source {source} lacks {', '.join(missing)}: expected each there by this name, "
            "unpacked or zipped as downloaded"
        )


def _find_file(source: Path, name: str, folders: list[str]) -> Part | None:
    """Find a single file in folders of the source, as a part."""
    for folder in folders:
        path = source / folder / name
        if path.is_file():
            return Part(path, {name: SourceFile(PurePosixPath(name), path.read_bytes, path)})
    return None


def _find_table(source: Path, name: str, stack: ExitStack) -> Part | None:
    """Find a CSV file in the part of its name, or by itself."""
    part = find_part(source, name, stack)
    if part is not None and f"{name}.csv" in part.files:
        return part
    return _find_file(source, f"{name}.csv", ["."])


def _read_table(part: Part, name: str, columns: list[str]) -> list[dict[str, str]]:
    """Read a CSV file with these columns and perhaps others."""
    try:
        reader = csv.DictReader(io.StringIO(part.read_text(f"{name}.csv")), restval="")
        header, rows = reader.fieldnames or [], list(reader)
    except csv.Error as e:
        raise ValueError(f"{name}.csv in {part.location} is no CSV file: {e}") from e
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{name}.csv has columns {', '.join(header)}: lacks {', '.join(missing)}")
    return [{column: row[column].strip() for column in columns} for row in rows]


def _find_other_suffix(name: str, paths: Set[str]) -> str | None:
    """The only path of the same name but for the suffix, which the provider has changed for some images."""
    stem = PurePosixPath(name).stem
    same = [path for path in paths if PurePosixPath(path).stem == stem]
    return same[0] if len(same) == 1 else None
