"""Make image folders with splits of a dataset as downloaded, or of images of one's own.

Check a dataset in the form in which its provider publishes it, zipped or unpacked, and write DIR/train/CLASS,
DIR/val/CLASS and DIR/test/CLASS for timm's scripts, with splits.csv and dataset.json; of kvasir, DIR/fold1 and
DIR/fold2 of this form. Unpacked images are hard-linked where the file system allows. Of one's own: TAG images takes
folders named for the classes, or a list; TAG medmnist takes a file of MedMNIST. Needs the extra medical, and for
DICOM explain.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..datasets import DATASETS, read_description

_OWN = ("images", "medmnist")

# Options beside those of all: of the paper's datasets, and of one's own images. MedMNIST has none.
_PUBLISHED = ("seed", "val_share", "group_by", "split", "test")
_IMAGES = (
    *("csv", "image", "label", "group", "split", "keep", "seed", "val_share", "test_share", "folds"),
    *("name", "title", "description", "classes", "license", "url", "citation"),
)


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm prepare`."""
    parser.epilog = (
        "--source holds, for isic2018: ISIC2018_Task3_Training_Input, ISIC2018_Task3_Training_GroundTruth and, for "
        "--group-by lesion, ISIC2018_Task3_Training_LesionGroupings.csv, for --test official "
        "ISIC2018_Task3_Test_Input and ISIC2018_Task3_Test_GroundTruth, or HAM10000_images_part_1 and _2 with "
        "HAM10000_metadata.csv;  for covid19ct: a clone of github.com/UCSD-AI4H/COVID-CT, of which Images-processed, "
        "Data-split and the tables of patients are read;  for kvasir: kvasir-dataset or kvasir-dataset-v2;  for "
        "images: CLASS/*, or train/CLASS/* and so on, or images that --csv names, DICOM among them;  for medmnist: a "
        "file as pathmnist_224.npz."
    )
    parser.add_argument("dataset", metavar="TAG", help=f"the dataset: {', '.join((*DATASETS, *_OWN))}")
    parser.add_argument("--source", required=True, metavar="DIR", help="folder with what was downloaded, or one's own")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write; one with the same dataset is replaced"
    )
    parser.add_argument("--seed", type=int, help="seed of the split (default: 0)")
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="isic2018, kvasir, images: share of val in train and val together, 0 for no val (default: 0.1)",
    )
    parser.add_argument(
        "--group-by",
        choices=["lesion", "patient"],
        help="isic2018: keep all images of a lesion in one split; covid19ct: all of a patient, drawn as the paper says",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="covid19ct: official for the provider's lists (default), or paper for 0.6, 0.15, 0.25 as the paper says; "
        "images: column of the list that says train, val or test",
    )
    parser.add_argument("--test", choices=["official"], help="isic2018: test on the 1,512 images of ISIC's test set")
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="leave out what is missing or not sound, and record it in dataset.json",
    )
    own = parser.add_argument_group(
        "images", "Columns that are not given are taken where their names are obvious, which is said."
    )
    own.add_argument("--csv", metavar="FILE", help="list of the images: CSV, TSV or Excel")
    own.add_argument("--image", metavar="COLUMN", help="its column of names, with or without folder and ending")
    own.add_argument("--label", nargs="+", metavar="COLUMN", help="its column of classes, or one-hot columns")
    own.add_argument("--group", metavar="COLUMN", help="its column of what stays in one split, as the patient")
    own.add_argument(
        "--keep",
        nargs="+",
        metavar="COLUMN",
        help="its columns that go into splits.csv, as site sex age, for evaluate --by",
    )
    own.add_argument("--test-share", type=float, metavar="X", help="share of test in all (default: 0.2)")
    own.add_argument("--folds", type=int, metavar="K", help="write K folds, DIR/fold1 and so on, each tested once")
    own.add_argument("--name", metavar="NAME", help="short name of the dataset (default: that of DIR)")
    own.add_argument("--title", metavar="TEXT", help="its name to show (default: the short one)")
    own.add_argument("--description", metavar="TEXT", help="what it holds, in a sentence")
    own.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS[=TEXT]",
        help="the classes, and what each is called in full; no others may be in the source",
    )
    own.add_argument("--license", metavar="ID", help="the Hub's identifier of the licence, as cc-by-4.0")
    own.add_argument("--url", metavar="URL", help="where it comes from")
    own.add_argument("--citation", metavar="TEXT", help="what to cite")


def run(args: Namespace) -> None:
    """Prepare a dataset, and print what is in its folders and what was found."""
    for folder in (folders := _prepare(args)):
        dataset = read_description(folder)
        sizes = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in dataset["counts"].items())
        print(f"{folder}: {dataset['title']}, {len(dataset['classes'])} classes, {sizes} images")
        if shared := dataset.get("shared_with_train"):
            unit = shared.pop("unit")
            said = " and ".join(f"{count:,} of {split}" for split, count in shared.items())
            print(f"{folder}: images whose {unit} is in train too: {said}")
    for finding in read_description(folders[0])["findings"]:
        listed = f": {len(finding['files']):,}, listed in dataset.json" if finding["files"] else ""
        print(f"{finding['kind']}: {finding['message']}{listed}")


def _prepare(args: Namespace) -> list[Path]:
    """Prepare the dataset; gives its folders."""
    from ..prepare import Columns, prepare, prepare_images, prepare_medmnist

    given = {option for option in (*_PUBLISHED, *_IMAGES) if getattr(args, option) is not None}
    taken = {"images": _IMAGES, "medmnist": ()}.get(args.dataset, _PUBLISHED)
    if others := sorted(given.difference(taken)):
        named = ", ".join(f"--{option.replace('_', '-')}" for option in others)
        raise ValueError(f"{named} cannot be given for {args.dataset}")
    options = {option: getattr(args, option) for option in given}
    options["allow_incomplete"] = args.allow_incomplete
    if args.dataset == "medmnist":
        return prepare_medmnist(args.source, args.out, **options)
    if args.dataset == "images":
        columns = {role: options.pop(role) for role in ("image", "label", "group", "split", "keep") if role in options}
        if "classes" in options:
            options["classes"] = dict(name.partition("=")[::2] for name in options["classes"])
        return prepare_images(
            args.source, args.out, table=options.pop("csv", None), columns=Columns(**columns), **options
        )
    return prepare(args.dataset, args.source, args.out, **options)
