"""One's own images: folders named for the classes, or a list of them."""

import re
import unicodedata
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from timm.utils.misc import natural_key

from ..datasets import DATASETS, Dataset, check_name
from ..errors import shorten
from .archives import list_all
from .drawing import Draw
from .inventory import SPLITS, Inventory, Sample
from .lists import ONE_LABEL, Columns, Entry, read_folders, read_list
from .preparation import Plan, carry_out

__all__ = ["add_samples", "prepare_images"]


def prepare_images(
    source: str | Path,
    out: str | Path,
    *,
    table: str | Path | None = None,
    columns: Columns | None = None,
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
    if table is None and columns not in (None, Columns()):
        raise ValueError("columns are those of a list: give csv")
    draw = Draw(seed, test_share, val_share, folds)
    name = _check_name(name, out)
    note = "not stated" if license == "unknown" else license
    data = Dataset(title or name, description, {}, license, note, url, citation)

    def read(source: Path, stack: ExitStack) -> Inventory:
        if out.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"out {out} lies in the source {source}, whose images it would be among: give another")
        inventory = Inventory(data, name)
        part = list_all(source, stack)
        inventory.add(part)
        if table is None:
            entries, labels = read_folders(inventory, part)
        else:
            entries, labels = read_list(inventory, part, Path(table), columns or Columns())
        add_samples(inventory, entries, labels, classes)
        draw.check(inventory)
        return inventory

    def describe(inventory: Inventory) -> dict:
        return draw.describe(inventory.samples) | {"group_by": inventory.unit}

    def name_splits(splits: list[str]) -> list[str]:
        return [split for split in SPLITS if split in {"train", *splits}]

    plan = Plan((name,), read, draw.split, name_splits, describe)
    return carry_out(plan, source, out, allow_incomplete)


def _check_name(name: str | None, out: Path) -> str:
    name = name or re.sub(r"[^A-Za-z0-9]+", "-", out.resolve().name).strip("-") or "images"
    if name in DATASETS:
        raise ValueError(
            f"name {name!r} is that of a dataset of the paper, whose figures it would stand beside: give another"
        )
    return check_name(name)


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
        inventory.samples.append(
            Sample(entry.file, label, entry.subject or itself, entry.split, entry.subject, name, kept=entry.kept)
        )
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
            raise ValueError(f"label {label!r} is several in one, {', '.join(sorted(parts))}: {ONE_LABEL}")
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
