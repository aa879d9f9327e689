"""Print the path of a training recipe for timm's train.py.

Print the path of a training recipe, the settings of the paper's Table 2 and the authors' augmentation, for train.py
--device-modules hifuse_timm --config "$(python -m hifuse_timm recipe TAG)" ...
"""

from argparse import ArgumentParser, Namespace

from ..datasets import DATASETS


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm recipe`."""
    parser.epilog = "Recipes:  " + ";  ".join(f"{tag}: {data.name}" for tag, data in DATASETS.items())
    parser.add_argument("tag", metavar="TAG", help=f"dataset to train on: {', '.join(DATASETS)}")


def run(args: Namespace) -> None:
    """Print where a recipe is."""
    from ..recipes import recipe_path

    print(recipe_path(args.tag))
