"""Print the path of a training recipe for timm's train.py.

Print the path of a training recipe, the settings of the paper's Table 2 and the authors' augmentation, for train.py
--device-modules hifuse_timm --config "$(python -m hifuse_timm recipe TAG)" ... With --balanced, write one whose loss
makes up for classes of few images, by their counts in DIR/dataset.json; nobody has measured what that does.
"""

from argparse import ArgumentParser, Namespace

from ..datasets import DATASETS
from ..files import check_writable, write_text


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm recipe`."""
    parser.epilog = "Recipes:  " + ";  ".join(f"{tag}: {data.name}" for tag, data in DATASETS.items())
    parser.add_argument("tag", metavar="TAG", help=f"dataset to train on: {', '.join(DATASETS)}")
    parser.add_argument(
        "--balanced",
        action="store_true",
        help="binary cross-entropy of each class against the rest, in which both sides weigh the same",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="for --balanced: the dataset, as prepare writes it")
    parser.add_argument("--out", metavar="FILE.yaml", help="for --balanced: the file to write")


def run(args: Namespace) -> None:
    """Print where a recipe is, and write it if its loss is to be balanced."""
    from ..recipes import make_balanced_recipe, recipe_path

    given = [args.balanced, args.data_dir is not None, args.out is not None]
    if any(given) and not all(given):
        raise ValueError("--balanced, --data-dir and --out go together: give all of them, or none")
    if not args.balanced:
        print(recipe_path(args.tag))
        return
    check_writable(args.out)
    write_text(args.out, make_balanced_recipe(args.tag, args.data_dir))
    print(args.out)
