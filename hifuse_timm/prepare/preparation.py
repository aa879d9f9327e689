"""From a provider's archives to folders of images with splits, for timm's scripts and readers."""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..datasets import DATASETS
from ..files import check_replaceable, replacing_folder, write_json, write_text
from ..images import decode_image, fits_8_bits, is_turned, stretch, to_mode, upright
from ..version import __version__
from .archives import Finding, SourceFile
from .layouts import COUNTS, OFFICIAL_COUNTS, SPLITS, Inventory, Sample, read_layout
from .prepared import list_prepared
from .splits import split_covid19ct, split_isic2018, split_kvasir

__all__ = ["prepare"]

# Images that are rewritten as PNG, as train.py would not see them as they are meant.
_REWRITTEN = {
    "turned": "images that their EXIF data turn, which train.py ignores: written upright, as PNG",
    "depth": "grey images of more than 8 bits, which train.py cuts off at 255: written as PNG of 8 bits, from their "
    "darkest value to their brightest",
    "dicom": "DICOM files, which train.py does not read: written as PNG of 8 bits, by their window",
}

_SHOWN = 10  # files of a finding in an error; dataset.json has all


def prepare(
    tag: str,
    source: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    val_share: float | None = None,
    group_by: str | None = None,
    split: str | None = None,
    allow_incomplete: bool = False,
) -> list[Path]:
    """Prepare a dataset of the paper (Section 4.1) for training and evaluation.

    Writes folders `train/CLASS`, `val/CLASS` and `test/CLASS` of the provider's image files, `splits.csv` (file, class,
    split, group, checksum) and `dataset.json`. Images that their EXIF data turn, grey ones of more than 8 bits and
    DICOM become upright PNG of 8 bits, and `dataset.json` names them; all others stay as they are to the byte.
    Everything is read and checked before anything is written. Images of the same content never come into two splits.

    Args:
        tag: `isic2018`: 7,010 images for train and val, 3,005 for test. `covid19ct`: see `split`. `kvasir`: two folds,
            `out/fold1` and `out/fold2`, each a dataset whose test set is the other's train and val.
        source: Folder with the provider's archives, zipped or unpacked.
        out: Folder to write, new or empty. One that holds the same dataset, and nothing else, is replaced.
        seed: Seed of the draw; the official split has none.
        val_share: Share of val in train and val together, 0.1 by default, 0 for no val; for isic2018 and kvasir.
        group_by: `lesion` keeps all images of a lesion in one split; for isic2018.
        split: `official` (default) for the provider's lists, `paper` for a draw of 0.6, 0.15, 0.25; for covid19ct.
        allow_incomplete: Leave out what is not sound and go on; `dataset.json` has the findings.

    Returns:
        The prepared folders: one, or two of Kvasir.

    Raises:
        ValueError: If an argument is not valid, or the dataset is not complete and sound: then with the whole report.
        OSError: If the source lacks a part (FileNotFoundError), `out` holds something else (FileExistsError), or a
            file cannot be read or written. Nothing stays behind.
    """
    source, out = Path(source), Path(out)
    _check_options(tag, val_share, group_by, split)
    if not source.exists():
        raise FileNotFoundError(f"source {source} does not exist")
    if out.exists() and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise FileExistsError(f"out {out} holds the source {source}: give a new folder")
    list_written = partial(list_prepared, tag)
    check_replaceable(out, list_written)
    if tag == "covid19ct":
        split = split or "official"
    else:
        val_share = 0.1 if val_share is None else val_share

    with ExitStack() as stack:
        inventory = read_layout(tag, source, stack, group_by, split)
        _check_images(inventory)
        _check_duplicates(inventory)
        _check_counts(inventory, tag)
        report = _describe_findings(inventory.findings)
        if any(finding.error for finding in inventory.findings) and not allow_incomplete:
            raise ValueError(
                f"{tag} in {source} is not complete and sound; nothing was written\n{report}\n"
                "--allow-incomplete goes on with what is sound, and records this in dataset.json"
            )
        folds = _split(inventory.samples, tag, seed, val_share, split)
        for splits in folds.values():
            _check_classes(tag, splits, report)

        description = _describe_dataset(tag, inventory, seed, val_share, group_by, split)
        with replacing_folder(out, list_written) as beside:
            written = {}
            total = sum(len(samples) for splits in folds.values() for samples in splits.values())
            with tqdm(total=total, desc="writing", unit="image", disable=None) as progress:
                for fold, splits in folds.items():
                    _write_images(beside / fold, splits, written, progress)
            for fold, splits in folds.items():
                _write_tables(beside / fold, splits, description | ({"fold": int(fold[-1])} if fold else {}))
    return [out / fold for fold in folds]


def _check_options(tag: str, val_share: float | None, group_by: str | None, split: str | None) -> None:
    if tag not in DATASETS:
        raise ValueError(f"dataset {tag!r} is not known: expected one of {', '.join(DATASETS)}")
    if group_by is not None and tag != "isic2018":
        raise ValueError(f"group_by {group_by!r} is for isic2018 only: {tag} has no list of groups")
    if group_by not in (None, "lesion"):
        raise ValueError(f"group_by {group_by!r} is not known: expected 'lesion'")
    if split is not None and tag != "covid19ct":
        raise ValueError(f"split {split!r} is for covid19ct only: {tag} has one split")
    if split not in (None, "official", "paper"):
        raise ValueError(f"split {split!r} is not known: expected 'official' or 'paper'")
    if val_share is not None and tag == "covid19ct":
        raise ValueError(f"val_share {val_share} is not for covid19ct, whose splits have a val of their own")
    if val_share is not None and not 0 <= val_share < 1:
        raise ValueError(f"val_share {val_share} is not valid: expected a share from 0 up to, but not, 1")


def _folds(tag: str) -> tuple[str, ...]:
    """Folders of the folds within the prepared folder; itself where there is one."""
    return ("fold1", "fold2") if tag == "kvasir" else ("",)


def _check_images(inventory: Inventory) -> None:
    """Decode every image, take its checksums, and leave out those that cannot be decoded.

    What timm's train.py would see otherwise than its viewer does is rewritten, as PNG.
    """
    rewritten = defaultdict(list)

    def check(sample: Sample) -> str | None:
        try:
            data = sample.file.read()
            image = decode_image(io.BytesIO(data))
            if reasons := _rewriting_reasons(image):
                for reason in reasons:
                    rewritten[reason].append(str(sample))
                sample.file = _rewrite(sample.file)
                data = sample.file.read()
                image = Image.open(io.BytesIO(data))
            sample.checksum = hashlib.sha256(data).hexdigest()
            pixels = image.convert("RGB")
            content = hashlib.sha256(f"{pixels.size}".encode())
            content.update(pixels.tobytes())
            sample.content = content.hexdigest()
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
    for reason, message in _REWRITTEN.items():
        inventory.report(reason, message, rewritten[reason], error=False)
    inventory.samples = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]


def _rewriting_reasons(image: Image.Image) -> list[str]:
    """Why an image cannot stay as it is, of `_REWRITTEN`."""
    reasons = dict(turned=is_turned(image), depth=not fits_8_bits(image), dicom=image.format is None)
    return [reason for reason, applies in reasons.items() if applies]


def _rewrite(file: SourceFile) -> SourceFile:
    """The file as PNG of 8 bits, upright."""

    def read() -> bytes:
        image = upright(decode_image(io.BytesIO(file.read())))
        image = to_mode(image, "L" if image.mode in ("1", "L") else "RGB") if fits_8_bits(image) else stretch(image)
        png = io.BytesIO()
        image.save(png, "PNG", icc_profile=None)  # which may be of the mode that it had
        return png.getvalue()

    name = file.path.name if file.path.suffix.lower() == ".png" else f"{file.path.name}.png"
    return SourceFile(file.path.with_name(name), read)


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
    inventory.report("contradictory-labels", "images of the same content in two classes: left out", contradictory)
    message = "images of the same content in several splits: kept in the last of them (train, val, test)"
    inventory.report("duplicate-across-splits", message, across)
    inventory.report("duplicate", "images of the same content: kept in one split", within, error=False)
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


def _check_counts(inventory: Inventory, tag: str) -> None:
    """Compare the numbers of sound images with those published."""
    found = Counter(sample.label for sample in inventory.samples)
    expected = dict(COUNTS[tag])
    if any(sample.split for sample in inventory.samples):
        found.update(f"{sample.split}/{sample.label}" for sample in inventory.samples)
        for label, counts in OFFICIAL_COUNTS.items():
            expected |= {f"{split}/{label}": count for split, count in zip(SPLITS, counts, strict=True)}
    different = [f"{key}: {found[key]:,} of {count:,}" for key, count in expected.items() if found[key] != count]
    inventory.report("count", "numbers of sound images that are not those published", different)


def _check_classes(tag: str, splits: dict[str, list[Sample]], report: str) -> None:
    """Check that every split has every class, since timm numbers the classes that it finds in a folder."""
    for split, samples in splits.items():
        lacking = DATASETS[tag].labels.keys() - {sample.label for sample in samples}
        if lacking:
            raise ValueError(
                f"{split} would have no image of {', '.join(sorted(lacking))}, and timm would number the classes of "
                "that folder otherwise than those of the others: too few sound images, or too small a val_share"
                + (f"\n{report}" if report else "")
            )


def _split(
    samples: list[Sample], tag: str, seed: int, val_share: float | None, split: str | None
) -> dict[str, dict[str, list[Sample]]]:
    """Split the images: by name of the fold and of the split."""
    labels, groups = [sample.label for sample in samples], [sample.group for sample in samples]
    share = Fraction(str(val_share)) if val_share is not None else None
    if tag == "isic2018":
        folds = [split_isic2018(labels, groups, seed, share)]
    elif tag == "kvasir":
        folds = split_kvasir(labels, groups, seed, share)
    elif split == "paper":
        folds = [split_covid19ct(labels, groups, seed)]
    else:
        folds = [[sample.split for sample in samples]]
    names = [name for name in SPLITS if name != "val" or share != 0]
    return {
        fold: {name: [s for s, assigned in zip(samples, splits, strict=True) if assigned == name] for name in names}
        for fold, splits in zip(_folds(tag), folds, strict=True)
    }


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


def _describe_dataset(
    tag: str, inventory: Inventory, seed: int, val_share: float | None, group_by: str | None, split: str | None
) -> dict:
    """What dataset.json says of all folds."""
    data = DATASETS[tag]
    schemes = {
        "isic2018": "stratified, 70% train and val, 30% test",
        "kvasir": "stratified, two folds of 50%",
        "covid19ct": "the provider's lists" if split == "official" else "stratified, 60% train, 15% val, 25% test",
    }
    return {
        "name": tag,
        "title": data.name,
        "description": data.description,
        "classes": list(data.labels),
        "class_descriptions": data.labels,
        "split": split,
        "split_scheme": schemes[tag],
        "seed": None if split == "official" else seed,
        "val_share": val_share,
        "group_by": group_by,
        "source": data.url,
        "read_from": inventory.parts,
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


def _write_tables(folder: Path, splits: dict[str, list[Sample]], description: dict) -> None:
    """Write splits.csv and, last of all, dataset.json, without which the folder is no prepared dataset."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "class", "split", "group", "checksum"))
    for split, samples in splits.items():
        for s in samples:
            writer.writerow((f"{split}/{s}", s.label, split, s.group, s.checksum))
    write_text(folder / "splits.csv", table.getvalue())
    counts = {
        split: {label: sum(s.label == label for s in samples) for label in description["classes"]}
        for split, samples in splits.items()
    }
    write_json(folder / "dataset.json", description | {"counts": counts})
