"""What folders of images, or lists of them, say of each image."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import shorten
from .archives import Finding, Part, SourceFile
from .inventory import OWN_COLUMNS, SUBJECT_COLUMN, Inventory
from .names import NameFinder, strip_ending
from .tables import Table, find_column, read_table

__all__ = ["ONE_LABEL", "Columns", "Entry", "read_folders", "read_list"]

ONE_LABEL = "images of several classes each (multi-label) cannot be prepared"

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
        keep: Others that go into splits.csv as they are, as site, sex or age.
    """

    image: str | None = None
    label: Sequence[str] = ()
    group: str | None = None
    split: str | None = None
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """What a source says of an image."""

    file: SourceFile
    label: str
    subject: str | None = None
    split: str | None = None
    kept: tuple[str, ...] = ()


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


def read_folders(inventory: Inventory, part: Part) -> tuple[list[Entry], set[str]]:
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


def read_list(inventory: Inventory, part: Part, path: Path, columns: Columns) -> tuple[list[Entry], set[str]]:
    """The images that a list names, and the classes of all its rows."""
    if not path.is_file():
        raise FileNotFoundError(f"csv {path} does not exist or is not a file")
    table = read_table(path.read_bytes(), path.name)
    columns = _find_columns(inventory, table, columns)
    images = _find_images(inventory, part, path)
    inventory.dicom_subjects = columns.group is None
    inventory.unit = columns.group
    inventory.kept = tuple(columns.keep)
    inventory.parts.append(path.name)

    labels, rows_of, faults = _match_rows(table, columns, images)
    faults["uneven-row"] = table.uneven
    faults["image-without-label"] = list(images.keys() - rows_of.keys())
    entries = []
    for name, rows in rows_of.items():
        if len(set(rows)) > 1:
            faults["contradictory-rows"].append(name)
            continue
        if len(rows) > 1:
            faults["repeated-row"].append(name)
        if columns.group and rows[0].subject is None:
            faults["unknown-group"].append(name)
        entries.append(rows[0])
    for kind, (message, error) in _FAULTS.items():
        inventory.report(kind, message, faults[kind], error)
    return entries, labels


def _match_rows(
    table: Table, columns: Columns, images: dict[str, SourceFile]
) -> tuple[set[str], dict[str, list[Entry]], dict[str, list[str]]]:
    """The classes of all rows, what rows say of each image, and the rows that say nothing, by kind of fault."""
    finder = NameFinder(images)
    labels, rows_of, faults = set(), defaultdict(list), defaultdict(list)
    for number, row in zip(table.numbers, table.rows, strict=True):
        name, label, split = row[columns.image], _read_label(table, row, columns.label), None
        if columns.split:
            split = _read_split(table, row, columns.split)
        labels |= {label} - {""}
        lacks = [what for what, value in (("image", name), ("label", label), ("split", split)) if value == ""]
        found = finder.find(name)
        if lacks:
            faults[f"row-without-{lacks[0]}"].append(f"row {number} {name}".strip())
        elif len(found) != 1:
            faults["ambiguous-name" if found else "label-without-image"].append(name)
        else:
            if strip_ending(name) != name and PurePosixPath(found[0]).suffix != PurePosixPath(name).suffix:
                faults["other-suffix"].append(name)
            subject = row[columns.group] if columns.group else ""
            subject = None if subject.casefold() in _UNKNOWN else subject
            kept = tuple(row[column] for column in columns.keep)
            rows_of[found[0]].append(Entry(images[found[0]], label, subject, split, kept))
    return labels, rows_of, faults


def _find_columns(inventory: Inventory, table: Table, given: Columns) -> Columns:
    """All columns, those that were not given by their names; says which."""
    table.check_columns(*filter(None, (given.image, *given.label, given.group, given.split, *given.keep)))
    if own := sorted({*OWN_COLUMNS, SUBJECT_COLUMN} & set(given.keep)):
        raise ValueError(f"keep {shorten(own)}: splits.csv has columns of its own of this name, rename {table.name}'s")
    found = {"image": given.image, "label": list(given.label), "group": given.group, "split": given.split}
    taken = {given.image, *given.label, given.group, given.split}
    for role in found:
        if not found[role]:
            column = find_column(table, role, [column for column in table.header if column not in taken])
            taken.add(column)
            found[role] = [column] if role == "label" and column else column
    if not found["label"] or found["label"] == [None]:
        found["label"] = _find_one_hot(table, [c for c in table.header if c not in {*taken, *given.keep}])
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
    return Columns(**found, keep=given.keep)


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
        raise ValueError(f"{table.name} has several labels in a row, {', '.join(ones)}: {ONE_LABEL}")
    return ones[0] if ones else ""


def _read_split(table: Table, row: dict[str, str], column: str) -> str:
    """The split that a row names, empty if it names none."""
    word = row[column].casefold()
    if word and word not in _SPLIT_WORDS:
        raise ValueError(f"{table.name} has {row[column]!r} in the column {column}, expected train, val or test")
    return _SPLIT_WORDS.get(word, "")
