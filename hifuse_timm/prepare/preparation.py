"""From a provider's archives to folders of images with splits, for timm's scripts and readers."""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..files import check_replaceable, replacing_folder, write_json, write_text
from ..images import decode_image
from ..version import __version__
from .archives import Finding
from .conversion import REWRITTEN, find_reasons, read_subject, rewrite
from .inventory import OWN_COLUMNS, SPLITS, SUBJECT_COLUMN, Inventory, Sample
from .prepared import list_prepared

__all__ = ["Plan", "carry_out"]

_SHOWN = 10  # files of a finding in an error; dataset.json has all


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, and how.

    Attributes:
        names: Short names that the dataset may have; a folder with one of these is replaced.
        read: Lists the images of a source, without opening any; takes archives that stay open for reading.
        split: Gives the split of each image, by name of the fold; of one fold, that is empty.
        splits: Names of the splits to write, given those that the images have.
        describe: Says what was chosen, for dataset.json.
    """

    names: tuple[str, ...]
    read: Callable[[Path, ExitStack], Inventory]
    split: Callable[[list[Sample]], dict[str, list[str]]]
    splits: Callable[[list[str]], list[str]]
    describe: Callable[[Inventory], dict]


def carry_out(plan: Plan, source: str | Path, out: str | Path, allow_incomplete: bool = False) -> list[Path]:
    """Prepare a dataset: read and check everything, split it, then write it.

    Args:
        plan: What is to be prepared.
        source: Where it is.
        out: Folder to write, new or empty. One that holds the same dataset, and nothing else, is replaced.
        allow_incomplete: Leave out what is not sound and go on; `dataset.json` has the findings.

    Returns:
        The prepared folders, one for each fold.

    Raises:
        ValueError: If the dataset is not complete and sound: then with the whole report; or cannot be split.
        OSError: If the source lacks a part (FileNotFoundError), `out` holds something else (FileExistsError), or a
            file cannot be read or written. Nothing stays behind.
        RuntimeError: If an extra is not installed.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise FileNotFoundError(f"source {source} does not exist")
    if out.exists() and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise FileExistsError(f"out {out} holds the source {source}: give a new folder")
    list_written = partial(list_prepared, plan.names)
    check_replaceable(out, list_written)

    with ExitStack() as stack:
        inventory = plan.read(source, stack)
        _check_images(inventory)
        _check_duplicates(inventory)
        _check_groups(inventory)
        _check_counts(inventory)
        report = _describe_findings(inventory.findings)
        if any(finding.error for finding in inventory.findings) and not allow_incomplete:
            raise ValueError(
                f"{inventory.name} in {source} is not complete and sound; nothing was written\n{report}\n"
                "--allow-incomplete goes on with what is sound, and records this in dataset.json"
            )
        folds = _split(inventory, plan, report)

        description = _describe_dataset(inventory, plan.describe(inventory))
        with replacing_folder(out, list_written) as beside:
            written = {}
            total = sum(len(samples) for splits in folds.values() for samples in splits.values())
            with tqdm(total=total, desc="writing", unit="image", disable=None) as progress:
                for fold, splits in folds.items():
                    _write_images(beside / fold, splits, written, progress)
            for fold, splits in folds.items():
                number = {"fold": int(fold.removeprefix("fold"))} if fold else {}
                _write_tables(beside / fold, splits, description | number, inventory)
    return [out / fold for fold in folds]


def _check_images(inventory: Inventory) -> None:
    """Decode every image, take its checksums, and leave out those that cannot be decoded.

    What timm's train.py would see otherwise than its viewer does, or not at all, is rewritten, as PNG.
    """
    rewritten = defaultdict(list)

    def check(sample: Sample) -> str | None:
        try:
            data = sample.file.read()
            image = decode_image(io.BytesIO(data))
            if reasons := find_reasons(image, sample.name):
                for reason in reasons:
                    rewritten[reason].append(str(sample))
                if "dicom" in reasons and inventory.dicom_subjects:
                    sample.subject = read_subject(data)
                    sample.group = sample.subject or sample.group
                sample.file = rewrite(sample.file)
                sample.name = sample.name if sample.name.lower().endswith(".png") else f"{sample.name}.png"
                data = sample.file.read()
                image = Image.open(io.BytesIO(data))
            sample.checksum = hashlib.sha256(data).hexdigest()
            pixels = image.convert("RGB")
            content = hashlib.sha256(f"{pixels.size}".encode())
            content.update(pixels.tobytes())
            sample.content = content.hexdigest()
        except RuntimeError:  # an extra is missing
            raise
        except Exception as e:  # what a decoder raises on damaged data is not its documented errors alone
            return f"{sample} ({e or type(e).__name__})"
        return None

    samples = inventory.samples
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding and hashing let other threads run
        try:
            results = pool.map(check, samples)
            faults = list(tqdm(results, total=len(samples), desc="checking", unit="image", disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt need not wait for all images
            raise
    inventory.report("unreadable-image", "images that cannot be decoded: left out", filter(None, faults))
    for reason, message in REWRITTEN.items():
        inventory.report(reason, message, rewritten[reason], error=False)
    inventory.samples = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
    if any(sample.subject for sample in inventory.samples):
        inventory.unit = inventory.unit or "patient"


def _check_duplicates(inventory: Inventory) -> None:
    """Find images of the same content, see that they come into one split, and leave out those of two classes."""
    copies = defaultdict(list)
    for sample in inventory.samples:
        copies[sample.content].append(sample)
    contradictory, across, within = [], [], []
    left_out = set()
    for same in copies.values():
        if len(same) == 1:
            continue
        line = " = ".join(sorted(f"{sample.split}/{sample}" if sample.split else str(sample) for sample in same))
        if len({sample.label for sample in same}) > 1:
            contradictory.append(line)
            left_out.update(map(id, same))
        elif len({sample.split for sample in same}) > 1:
            across.append(line)
            last = max((sample.split for sample in same), key=SPLITS.index)
            left_out.update(id(sample) for sample in same if sample.split != last)
        else:
            within.append(line)
    kept = "kept, as the provider has them" if inventory.is_official else None
    message = f"images of the same content in two classes: {kept or 'left out'}"
    inventory.report("contradictory-labels", message, contradictory, error=not kept)
    message = f"images of the same content in several splits: {kept or 'kept in the last of them (train, val, test)'}"
    inventory.report("duplicate-across-splits", message, across, error=not kept)
    inventory.report("duplicate", "images of the same content: kept in one split", within, error=False)
    if kept:
        return
    inventory.samples = sorted((sample for sample in inventory.samples if id(sample) not in left_out), key=str)
    _join_groups(inventory.samples)


def _join_groups(samples: list[Sample]) -> None:
    """Join the groups of images of the same content, under the first of their names."""
    joined = {}

    def find(group: str) -> str:
        while joined.get(group, group) != group:
            group = joined[group]
        return group

    first = {}
    for sample in samples:
        a, b = sorted((find(sample.group), find(first.setdefault(sample.content, sample).group)))
        joined[b] = a
    for sample in samples:
        sample.group = find(sample.group)


def _check_groups(inventory: Inventory) -> None:
    """Find groups that the given splits tear apart; their images stay in the last of their splits."""
    splits_of = defaultdict(set)
    for sample in inventory.samples:
        splits_of[sample.group].add(sample.split)
    torn = {group for group, splits in splits_of.items() if len(splits) > 1}
    message = "groups, as patients, that are in several splits: images kept in the last of these (train, val, test)"
    inventory.report("group-across-splits", message, torn)
    inventory.samples = [
        sample
        for sample in inventory.samples
        if sample.group not in torn or sample.split == max(splits_of[sample.group], key=SPLITS.index)
    ]


def _check_counts(inventory: Inventory) -> None:
    """Compare the numbers of sound images with those published."""
    found = Counter()
    for sample in inventory.samples:
        found.update((sample.label, sample.split, f"{sample.split}/{sample.label}"))
    different = [
        f"{key}: {found[key]:,} of {count:,}" for key, count in inventory.counts.items() if found[key] != count
    ]
    inventory.report("count", "numbers of sound images that are not those published", different)


def _split(inventory: Inventory, plan: Plan, report: str) -> dict[str, dict[str, list[Sample]]]:
    """Split the images, by name of the fold and of the split, and check that every split has every class."""
    samples = inventory.samples
    try:
        folds = {
            fold: {name: [s for s, a in zip(samples, splits, strict=True) if a == name] for name in plan.splits(splits)}
            for fold, splits in plan.split(samples).items()
        }
        for splits in folds.values():
            _check_classes(inventory.dataset.labels, splits)
    except ValueError as e:
        raise ValueError(f"{e}\n{report}" if report else str(e)) from e
    return folds


def _check_classes(labels: Iterable[str], splits: dict[str, list[Sample]]) -> None:
    """Check that every split has every class, since timm numbers the classes that it finds in a folder."""
    for split, samples in splits.items():
        lacking = set(labels) - {sample.label for sample in samples}
        if lacking:
            raise ValueError(
                f"{split} would have no image of {', '.join(sorted(lacking))}, and timm would number the classes of "
                "that folder otherwise than those of the others: too few sound images, or too small a share of them"
            )


def _describe_findings(findings: list[Finding]) -> str:
    """The report that stands in an error."""
    lines = []
    for finding in sorted(findings, key=lambda finding: not finding.error):
        shown = ", ".join(finding.files[:_SHOWN])
        more = f", and {len(finding.files) - _SHOWN:,} more" if len(finding.files) > _SHOWN else ""
        lines.append(f"  {finding.kind}{'' if finding.error else ' (remark)'}: {finding.message}")
        if finding.files:
            lines.append(f"    {len(finding.files):,}: {shown}{more}")
    return "\n".join(lines)


def _describe_dataset(inventory: Inventory, choices: dict) -> dict:
    """What dataset.json says of all folds."""
    data = inventory.dataset
    return {
        "name": inventory.name,
        "title": data.name,
        "description": data.description,
        "classes": list(data.labels),
        "class_descriptions": data.labels,
        **choices,
        "source": data.url,
        "read_from": inventory.parts,
        **({"columns": inventory.columns} if inventory.columns else {}),
        "license": data.license,
        "license_note": data.license_note,
        "citation": data.citation,
        "complete": not any(finding.error for finding in inventory.findings),
        "findings": [
            {
                "kind": finding.kind,
                "severity": "error" if finding.error else "remark",
                "message": finding.message,
                "files": list(finding.files),
            }
            for finding in inventory.findings
        ],
        "prepared_by": f"hifuse-timm {__version__}",
    }


def _write_images(folder: Path, splits: dict[str, list[Sample]], written: dict[int, Path], progress: tqdm) -> None:
    """Write images, as hard links to what is on disk already where the file system has them.

    Args:
        folder: Folder of the fold.
        splits: Images by split.
        written: By identity of the sample, the file that another fold has of it; is added to.
        progress: Advanced by one an image.
    """
    for split, samples in splits.items():
        for label in {sample.label for sample in samples}:
            (folder / split / label).mkdir(parents=True)
        for sample in samples:
            path = folder / split / sample.label / sample.name
            original = written.get(id(sample), sample.file.origin)
            if original is None or not _link(original, path):
                data = sample.file.read()
                if hashlib.sha256(data).hexdigest() != sample.checksum:
                    raise OSError(f"{sample} changed while it was prepared: run again")
                with open(path, "xb") as f:
                    f.write(data)
            written[id(sample)] = path
            progress.update()


def _link(original: Path, path: Path) -> bool:
    """Make a hard link, and tell whether the file system could."""
    try:
        os.link(original, path)
    except OSError:
        return False
    return True


def _write_tables(folder: Path, splits: dict[str, list[Sample]], description: dict, inventory: Inventory) -> None:
    """Write splits.csv and, last of all, dataset.json, without which the folder is no prepared dataset."""
    has_subjects = _names_more_than_groups(inventory.samples)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow((*OWN_COLUMNS, *([SUBJECT_COLUMN] if has_subjects else []), *inventory.kept))
    for split, samples in splits.items():
        for s in samples:
            subject = [s.subject or s.group] if has_subjects else []
            writer.writerow((f"{split}/{s}", s.label, split, s.group, s.checksum, *subject, *s.kept))
    write_text(folder / "splits.csv", table.getvalue())
    counts = {
        split: {label: sum(s.label == label for s in samples) for label in description["classes"]}
        for split, samples in splits.items()
    }
    shared = {"shared_with_train": _count_shared(splits, inventory.unit)} if inventory.unit else {}
    write_json(folder / "dataset.json", description | {"counts": counts} | shared)


def _names_more_than_groups(samples: list[Sample]) -> bool:
    """Whether images of one patient, or lesion, are in several groups, as where a split was drawn by images."""
    groups = {}
    return any(s.subject and groups.setdefault(s.subject, s.group) != s.group for s in samples)


def _count_shared(splits: dict[str, list[Sample]], unit: str) -> dict[str, str | int]:
    """How many images of each other split show a patient, or lesion, that train has too."""
    trained = {sample.subject for sample in splits["train"]} - {None}
    others = {split: samples for split, samples in splits.items() if split != "train"}
    return {"unit": unit} | {split: sum(s.subject in trained for s in samples) for split, samples in others.items()}
