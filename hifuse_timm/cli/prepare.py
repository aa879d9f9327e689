"""Make image folders with splits of a dataset as downloaded.

Check a dataset in the form in which its provider publishes it, zipped or unpacked, and write DIR/train/CLASS,
DIR/val/CLASS and DIR/test/CLASS for timm's scripts, with splits.csv and dataset.json; of kvasir, DIR/fold1 and
DIR/fold2 of this form. Unpacked images are hard-linked where the file system allows.
"""

from argparse import ArgumentParser, Namespace

from ..datasets import DATASETS, read_description


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm prepare`."""
    parser.epilog = (
        "--source holds, for isic2018: ISIC2018_Task3_Training_Input, ISIC2018_Task3_Training_GroundTruth and, for "
        "--group-by lesion, ISIC2018_Task3_Training_LesionGroupings.csv;  for covid19ct: a clone of "
        "github.com/UCSD-AI4H/COVID-CT, of which Images-processed and Data-split are read;  for kvasir: kvasir-dataset."
    )
    parser.add_argument("dataset", metavar="TAG", help=f"the dataset: {', '.join(DATASETS)}")
    parser.add_argument("--source", required=True, metavar="DIR", help="folder with what was downloaded")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write; one with the same dataset is replaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="isic2018, kvasir: share of val in train and val together, 0 for no val (default: 0.1)",
    )
    parser.add_argument("--group-by", choices=["lesion"], help="isic2018: keep all images of a lesion in one split")
    parser.add_argument(
        "--split",
        choices=["official", "paper"],
        help="covid19ct: the provider's lists (default), or 0.6, 0.15, 0.25 as the paper says",
    )
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="leave out what is missing or not sound, and record it in dataset.json",
    )


def run(args: Namespace) -> None:
    """Prepare a dataset, and print what is in its folders and what was found."""
    from ..prepare import prepare

    folders = prepare(
        args.dataset,
        args.source,
        args.out,
        seed=args.seed,
        val_share=args.val_share,
        group_by=args.group_by,
        split=args.split,
        allow_incomplete=args.allow_incomplete,
    )
    for folder in folders:
        dataset = read_description(folder)
        sizes = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in dataset["counts"].items())
        print(f"{folder}: {dataset['title']}, {len(dataset['classes'])} classes, {sizes} images")
    for finding in dataset["findings"]:
        print(f"{finding['kind']}: {finding['message']}: {len(finding['files']):,}, listed in dataset.json")
