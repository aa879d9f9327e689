"""The paper's datasets, as their providers publish them."""

import random
from fractions import Fraction
from functools import partial
from pathlib import Path

from ..datasets import DATASETS
from .inventory import SPLITS, Sample
from .layouts import read_layout
from .preparation import Plan, carry_out
from .splits import draw_val, split_covid19ct, split_isic2018, split_kvasir

__all__ = ["prepare"]

# By option, the values that there are and the dataset that each is for.
_CHOICES = {
    "group_by": {"lesion": "isic2018", "patient": "covid19ct"},
    "split": {"official": "covid19ct", "paper": "covid19ct"},
    "test": {"official": "isic2018"},
}


def prepare(
    tag: str,
    source: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    val_share: float | None = None,
    group_by: str | None = None,
    split: str | None = None,
    test: str | None = None,
    allow_incomplete: bool = False,
) -> list[Path]:
    """Prepare a dataset of the paper (Section 4.1) for training and evaluation.

    Writes folders `train/CLASS`, `val/CLASS` and `test/CLASS` of the provider's image files, `splits.csv` (file, class,
    split, group, checksum) and `dataset.json`. Images that their EXIF data turn, grey ones of more than 8 bits and
    DICOM become upright PNG of 8 bits, and `dataset.json` names them; all others stay as they are to the byte.
    Everything is read and checked before anything is written. Images of the same content never come into two splits.
    Where the source names lesions or patients, `dataset.json` says how many images of val and test show one that train
    has too.

    Args:
        tag: `isic2018`: 7,010 images for train and val, 3,005 for test; or HAM10000, the same images, as Dataverse and
            Kaggle publish them. `covid19ct`: see `split`. `kvasir`: two folds, `out/fold1` and `out/fold2`, each a
            dataset whose test set is the other's train and val; of version 2, `kvasir-v2`, where that is the source.
        source: Folder with the provider's archives, zipped or unpacked.
        out: Folder to write, new or empty. One that holds the same dataset, and nothing else, is replaced.
        seed: Seed of the draw; the official split has none.
        val_share: Share of val in train and val together, 0.1 by default, 0 for no val; for isic2018 and kvasir.
        group_by: What stays in one split: `lesion` for isic2018, `patient` for covid19ct, whose split is then drawn.
        split: `official` (default) for the provider's lists, `paper` for a draw of 0.6, 0.15, 0.25; for covid19ct.
        test: `official` for the 1,512 images that ISIC tests with, and all others for train and val; for isic2018.
        allow_incomplete: Leave out what is not sound and go on; `dataset.json` has the findings.

    Returns:
        The prepared folders: one, or two of Kvasir.

    Raises:
        ValueError: If an argument is not valid, or the dataset is not complete and sound: then with the whole report.
        OSError: If the source lacks a part (FileNotFoundError), `out` holds something else (FileExistsError), or a
            file cannot be read or written. Nothing stays behind.
    """
    _check_options(tag, val_share, dict(group_by=group_by, split=split, test=test))
    if tag == "covid19ct":
        split = split or ("paper" if group_by else "official")
        if group_by and split == "official":
            raise ValueError("group_by 'patient' is for the split 'paper': the official lists are as they are")
    else:
        val_share = 0.1 if val_share is None else val_share
    schemes = {
        "isic2018": "stratified, 70% train and val, 30% test",
        "kvasir": "stratified, two folds of 50%",
        "covid19ct": "the provider's lists" if split == "official" else "stratified, 60% train, 15% val, 25% test",
    }
    plan = Plan(
        names=("kvasir", "kvasir-v2") if tag == "kvasir" else (tag,),
        read=partial(read_layout, tag, group_by=group_by, split=split, test=test),
        split=partial(_split, tag, seed, None if val_share is None else Fraction(str(val_share))),
        splits=lambda _: [name for name in SPLITS if name != "val" or val_share != 0],
        describe=lambda _: dict(
            split=split,
            test=test,
            split_scheme="the official test set; val stratified" if test else schemes[tag],
            seed=None if split == "official" else seed,
            val_share=val_share,
            group_by=group_by,
        ),
    )
    return carry_out(plan, source, out, allow_incomplete)


def _check_options(tag: str, val_share: float | None, options: dict[str, str | None]) -> None:
    if tag not in DATASETS:
        raise ValueError(f"dataset {tag!r} is not known: expected one of {', '.join(DATASETS)}")
    for option, value in options.items():
        tags = _CHOICES[option]
        if value is None:
            continue
        if value not in tags:
            raise ValueError(f"{option} {value!r} is not known: expected {' or '.join(map(repr, tags))}")
        if tag != tags[value]:
            raise ValueError(f"{option} {value!r} is for {tags[value]} only, not for {tag}")
    if val_share is not None and tag == "covid19ct":
        raise ValueError(f"val_share {val_share} is not for covid19ct, whose splits have a val of their own")
    if val_share is not None and not 0 <= val_share < 1:
        raise ValueError(f"val_share {val_share} is not valid: expected a share from 0 up to, but not, 1")


def _split(tag: str, seed: int, val_share: Fraction | None, samples: list[Sample]) -> dict[str, list[str]]:
    """The split of each image, by name of the fold."""
    labels, groups = [sample.label for sample in samples], [sample.group for sample in samples]
    if tag == "kvasir":
        return dict(zip(("fold1", "fold2"), split_kvasir(labels, groups, seed, val_share), strict=True))
    given = [sample.split for sample in samples]
    if tag == "isic2018" and any(given):
        return {"": draw_val(labels, groups, given, val_share, random.Random(seed))}
    if any(given):
        return {"": given}
    split = (
        split_covid19ct(labels, groups, seed) if val_share is None else split_isic2018(labels, groups, seed, val_share)
    )
    return {"": split}
