"""One's own images: folders named for the classes, or a list of them."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path, PurePosixPath

from timm.utils.misc import natural_key

from ..datasets import DATASETS, Dataset
from ..errors import shorten
from .archives import Finding, Part, SourceFile, list_all
from .drawing import Draw
from .inventory import SPLITS, Inventory, Sample
from .names import NameFinder, strip_ending
from .preparation import Plan, carry_out
from .tables import Table, find_column, read_table

__all__ = ["Columns", "Entry", "add_samples", "prepare_images"]

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_UNKNOWN = {"", "-1", "-1.0", "?", "na", "n/a", "nan", "none", "null", "unknown"}  # for a patient
_ZEROS, _ONES = {"0", "0.0"}, {"1", "1.0"}
_ONE_LABEL = "images of several classes each (multi-label) cannot be prepared"

# What may be wrong with a list: in words, and whether it is an error.
_FAULTS = {
    "uneven-row": ("rows with more cells than the header: left out", True),
    "row-without-image": ("rows that name no image: left out", True),
    "row-without-label": ("rows without a label: left out", True),
    "row-without-split": ("rows without a split: left out", True),
    "label-without-image": ("images that the list names and that are missing", True),
    "ambiguous-name": ("names in the list that several images have: left out", True),
    "contradictory-rows": ("images that the list names several times, with different words: left out", True),
    "image-without-label": ("images that the list does not name: left out", True),
    "repeated-row": ("images that the list names several times, with the same words", False),
    "other-suffix": ("listed names whose file has another ending: that file was taken", False),
    "unknown-group": ("images whose group, as the patient, is not known: each a group of its own", False),
}


@dataclass(frozen=True)
class Columns:
    """The columns of a list, by what they hold; those not given are guessed where their names are obvious.

    Attributes:
        image: Names of the images, with or without folder and ending.
        label: The class; several columns are one-hot, named for the classes.
        group: What stays in one split: the patient, lesion, eye or slide.
        split: train, val or test.
    """

    image: str | None = None
    label: Sequence[str] = ()
    group: str | None = None
    split: str | None = None


def prepare_images(
    source: str | Path,
    out: str | Path,
    *,
    table: str | Path | None = None,
    columns: Columns = Columns(),
    classes: dict[str, str] | None = None,
    seed: int = 0,
    test_share: float | None = None,
    val_share: float | None = None,
    folds: int | None = None,
    name: str | None = None,
    title: str | None = None,
    description: str = "",
    license: str = "unknown",
    url: str = "",
    citation: str = "",
    allow_incomplete: bool = False,
) -> list[Path]:
    """Prepare images of one's own, as `prepare` does with the paper's.

    Classes and splits come from a list, or from folders: `source/CLASS`, or `source/train/CLASS` and so on. Where no
    split is given, one is drawn, stratified and with all images of a group in one split. DICOM files are grouped by
    their patient, or series, where no list names the groups. Images that timm's scripts would not read, or not as they
    are meant, become PNG.

    Args:
        source: Folder of the images, or an archive of it.
        out: Folder to write, new or empty. One that holds the same dataset, and nothing else, is replaced.
        table: List of the images: CSV, TSV or Excel.
        columns: Its columns.
        classes: Descriptions of the classes by their names in the source; no others may occur there.
        seed: Seed of the draw.
        test_share: Share of test in all, 0.2 by default.
        val_share: Share of val in train and val together, 0.1 by default, 0 for no val. Where a split is given, val is
            drawn from its train if it has no val and this is given.
        folds: Number of folds to write, each the test set of one dataset, `out/fold1` and so on, in the place of
            `test_share`.
        name: Short name of the dataset, that of `out` by default.
        title: Name to show, the short one by default.
        description: What it holds, in a sentence.
        license: The Hub's identifier of the licence.
        url: Where it comes from.
        citation: What to cite.
        allow_incomplete: Leave out what is not sound and go on; `dataset.json` has the findings.

    Returns:
        The prepared folders, one for each fold.

    Raises:
        ValueError: If an argument is not valid, the list cannot be read, or the images are not complete and sound.
        OSError: If a file cannot be read or written.
        RuntimeError: If an extra is not installed.
    """
    out = Path(out)
    if table is None and columns != Columns():
        raise ValueError("columns are those of a list: give csv")
    draw = Draw(seed, test_share, val_share, folds)
    name = _check_name(name, out)
    note = "" if license != "unknown" else "not stated"
    data = Dataset(title or name, description, {}, license, note, url, citation)

    def read(source: Path, stack: ExitStack) -> Inventory:
        if out.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"out {out} lies in the source {source}, whose images it would be among: give another")
        inventory = Inventory(data, name)
        part = list_all(source, stack)
        inventory.add(part)
        if table is None:
            entries, labels = _read_folders(inventory, part)
        else:
            entries, labels = _read_list(inventory, part, Path(table), columns)
        add_samples(inventory, entries, labels, classes)
        draw.check(inventory)
        return inventory

    def describe(inventory: Inventory) -> dict:
        return draw.describe(inventory.samples) | {"group_by": inventory.unit}

    plan = Plan((name,), read, draw.split, lambda splits: [split for split in SPLITS if split in splits], describe)
    return carry_out(plan, source, out, allow_incomplete)


def _check_name(name: str | None, out: Path) -> str:
    name = name or re.sub(r"[^A-Za-z0-9]+", "-", out.resolve().name).strip("-") or "images"
    if name in DATASETS:
        raise ValueError(
            f"name {name!r} is that of a dataset of the paper, whose figures it would stand beside: give another"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r} is not valid: expected letters, digits, and -, _ or . between them")
    return name


@dataclass(frozen=True)
class Entry:
    """What a source says of an image."""

    file: SourceFile
    label: str
    subject: str | None = None
    split: str | None = None


def _is_image_file(file: SourceFile) -> bool:
    """Whether a file is an image by its ending, or DICOM, which often has none, by its first bytes."""
    path = str(file.path)
    if strip_ending(path) != path:
        return True
    if file.path.name.upper() == "DICOMDIR":  # which lists the others
        return False
    if file.origin is None:
        return file.read()[128:132] == b"DICM"
    with file.origin.open("rb") as f:
        return f.read(132)[128:] == b"DICM"


def _find_images(inventory: Inventory, part: Part, table: Path | None = None) -> dict[str, SourceFile]:
    images = {path: file for path, file in part.files.items() if _is_image_file(file)}
    others = {
        path
        for path, file in part.files.items()
        if path not in images and (table is None or file.origin is None or not file.origin.samefile(table))
    }
    inventory.report("surplus-file", "files that are no images: left out", others, error=False)
    if not images:
        raise ValueError(f"source {part.location} holds no images")
    return images


def _read_folders(inventory: Inventory, part: Part) -> tuple[list[Entry], set[str]]:
    """The images in folders of classes, and the classes."""
    images = _find_images(inventory, part)
    tops = {file.path.parts[0] for file in images.values() if len(file.path.parts) > 1}
    by_split = bool(tops) and all(top.casefold() in _SPLIT_WORDS for top in tops)
    entries, misplaced = [], []
    for path, file in images.items():
        folders = file.path.parts[:-1]
        split = _SPLIT_WORDS[folders[0].casefold()] if by_split and folders else None
        labels = folders[by_split:]
        if labels:
            entries.append(Entry(file, labels[0], split=split))
        else:
            misplaced.append(path)
    inventory.report("misplaced-image", "images that are in no folder of a class: left out", misplaced)
    inventory.dicom_subjects = True
    return entries, {entry.label for entry in entries}


def _read_list(inventory: Inventory, part: Part, path: Path, columns: Columns) -> tuple[list[Entry], set[str]]:
    """The images that a list names, and the classes of all its rows."""
    if not path.is_file():
        raise FileNotFoundError(f"csv {path} does not exist or is not a file")
    table = read_table(path.read_bytes(), path.name)
    columns = _find_columns(inventory, table, columns)
    images = _find_images(inventory, part, path)
    inventory.dicom_subjects = columns.group is None
    inventory.unit = columns.group
    inventory.parts.append(path.name)

    finder = NameFinder(images)
    labels, entries, faults = set(), defaultdict(list), defaultdict(list)
    for number, row in zip(table.numbers, table.rows, strict=True):
        name = row[columns.image]
        found = finder.find(name) if name else []
        label, split = _read_label(table, row, columns.label), _read_split(table, row, columns.split)
        labels |= {label} - {""}
        if not name or not label or split == "":
            lacks = "image" if not name else "label" if not label else "split"
            faults[f"row-without-{lacks}"].append(f"row {number} {name}".strip())
        elif len(found) != 1:
            faults["ambiguous-name" if found else "label-without-image"].append(name)
        else:
            if strip_ending(name) != name and PurePosixPath(found[0]).suffix != PurePosixPath(name).suffix:
                faults["other-suffix"].append(name)
            subject = row[columns.group] if columns.group else None
            known = subject and subject.casefold() not in _UNKNOWN
            entries[found[0]].append(Entry(images[found[0]], label, subject if known else None, split))

    several = {path: of_image for path, of_image in entries.items() if len(of_image) > 1}
    faults["contradictory-rows"] = [path for path, of_image in several.items() if len(set(of_image)) > 1]
    faults["repeated-row"] = list(several.keys() - set(faults["contradictory-rows"]))
    faults["uneven-row"] = table.uneven
    faults["image-without-label"] = list(images.keys() - entries.keys())
    single = [of_image[0] for path, of_image in entries.items() if path not in set(faults["contradictory-rows"])]
    if columns.group:
        faults["unknown-group"] = [str(entry.file.path) for entry in single if entry.subject is None]
    for kind, (message, error) in _FAULTS.items():
        inventory.report(kind, message, faults[kind], error)
    return single, labels


def _find_columns(inventory: Inventory, table: Table, given: Columns) -> Columns:
    """All columns, those that were not given by their names; says which."""
    table.check_columns(*filter(None, (given.image, *given.label, given.group, given.split)))
    found = {"image": given.image, "label": list(given.label), "group": given.group, "split": given.split}
    taken = {given.image, *given.label, given.group, given.split}
    for role in found:
        if not found[role]:
            column = find_column(table, role, [column for column in table.header if column not in taken])
            taken.add(column)
            found[role] = [column] if role == "label" and column else column
    if not found["label"] or found["label"] == [None]:
        found["label"] = _find_one_hot(table, [column for column in table.header if column not in taken])
    for role in ("image", "label"):
        if not found[role]:
            raise ValueError(
                f"{table.name} has columns {', '.join(table.header)}: none is obviously the {role}; give --{role}"
            )
    inventory.columns = {role: column for role, column in found.items() if column}
    said = "; ".join(
        f"{role} from {', '.join(column) if role == 'label' else column}{'' if getattr(given, role) else ' (guessed)'}"
        for role, column in inventory.columns.items()
    )
    for note in (*table.notes, f"{table.name}: {said}"):
        inventory.findings.append(Finding("list", note, error=False))
    return Columns(**found)


def _find_one_hot(table: Table, columns: list[str]) -> list[str]:
    """The columns of zeros and ones, if there is one 1 in each row."""
    columns = [column for column in columns if all(row[column] in _ZEROS | _ONES for row in table.rows)]
    whole = len(columns) > 1 and all(sum(row[column] in _ONES for column in columns) == 1 for row in table.rows)
    return columns if whole else []


def _read_label(table: Table, row: dict[str, str], columns: Sequence[str]) -> str:
    """The class that a row names, empty if it names none."""
    if len(columns) == 1:
        return row[columns[0]]
    odd = [column for column in columns if row[column] not in _ZEROS | _ONES]
    if odd:
        raise ValueError(f"{table.name} has {row[odd[0]]!r} in the column {odd[0]} of one-hot labels, expected 0 or 1")
    ones = [column for column in columns if row[column] in _ONES]
    if len(ones) > 1:
        raise ValueError(f"{table.name} has several labels in a row, {', '.join(ones)}: {_ONE_LABEL}")
    return ones[0] if ones else ""


def _read_split(table: Table, row: dict[str, str], column: str | None) -> str | None:
    """The split that a row names, empty if it names none, None where no column does."""
    if column is None:
        return None
    word = row[column].casefold()
    if word and word not in _SPLIT_WORDS:
        raise ValueError(f"{table.name} has {row[column]!r} in the column {column}, expected train, val or test")
    return _SPLIT_WORDS.get(word, "")


def add_samples(
    inventory: Inventory, entries: list[Entry], labels: set[str], classes: dict[str, str] | None = None
) -> None:
    """Add images under names of folders and files that the file system and timm tell apart.

    Args:
        inventory: Takes them, and the classes.
        entries: The images.
        labels: Classes that there are.
        classes: Descriptions of all that there may be.
    """
    folders = _name_folders(labels, classes or {})
    inventory.dataset = replace(
        inventory.dataset,
        labels={
            folders[label]: (classes or {}).get(label) or label
            for label in sorted(folders, key=lambda label: natural_key(folders[label]))
        },
    )
    taken, renamed = set(), []
    for entry in sorted(entries, key=lambda entry: str(entry.file.path)):
        label, path = folders[entry.label], entry.file.path
        longer = "_".join(path.parts)
        names = chain([path.name, longer], (f"{number}_{longer}" for number in count(2)))
        name = next(name for name in names if (label, name.casefold()) not in taken)
        taken.add((label, name.casefold()))
        if name != path.name:
            renamed.append(f"{path} as {label}/{name}")
        itself = f"{label}/{name}"
        inventory.samples.append(Sample(entry.file, label, entry.subject or itself, entry.split, entry.subject, name))
    message = "images of one name in a class: the later ones are named for their folders too"
    inventory.report("renamed", message, renamed, error=False)


def _name_folders(labels: set[str], classes: dict[str, str]) -> dict[str, str]:
    """The name of the folder of each class."""
    unknown = labels - classes.keys() if classes else set()
    if unknown:
        raise ValueError(f"labels {shorten(sorted(unknown))} are none of the classes given, {shorten(classes)}")
    for label in sorted(labels):
        parts = {part.strip() for separator in "|;," for part in label.split(separator) if separator in label}
        if len(parts & labels) > 1 or ("|" in label and parts & labels):
            raise ValueError(f"label {label!r} is several in one, {', '.join(sorted(parts))}: {_ONE_LABEL}")
    folders, alike = {}, defaultdict(list)
    for label in sorted(labels | classes.keys()):
        name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", unicodedata.normalize("NFC", label)).rstrip(". ")
        folders[label] = re.sub(r"^\.|^$", "_", name)
        alike[tuple(natural_key(folders[label].casefold()))].append(label)
    same = [" and ".join(map(repr, of_name)) for of_name in alike.values() if len(of_name) > 1]
    if same:
        raise ValueError(
            f"labels {shorten(same)} differ in case or signs only, and their folders would not: spell each class alike"
        )
    if len(folders) < 2:
        raise ValueError(f"there is one class, {shorten(folders)}, expected two or more")
    return folders
