"""Options that several commands have."""

from argparse import ArgumentParser, BooleanOptionalAction

from timm.utils import ParseKwargs


def add_use_ema(parser: ArgumentParser) -> None:
    """Define --use-ema: which weights of a checkpoint to take."""
    parser.add_argument(
        "--use-ema",
        action=BooleanOptionalAction,
        help="take the averaged weights of train.py's --model-ema, or not; by default where there are some",
    )


def add_class_map(parser: ArgumentParser) -> None:
    """Define --class-map: where the classes of a checkpoint are named."""
    parser.add_argument(
        "--class-map",
        metavar="FILE",
        help="class map of train.py, a .txt with a class a line; by default the one that the training was given",
    )


def add_model_kwargs(parser: ArgumentParser) -> None:
    """Define --model-kwargs: what the network is, beyond what the checkpoint says."""
    parser.add_argument(
        "--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="as in timm's scripts"
    )
