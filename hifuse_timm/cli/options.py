"""Options that several commands have."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from timm.utils import ParseKwargs

from ..bootstrap import RESAMPLED
from ..loading import PRECISIONS
from ..train_args import CROP_MODES


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


def add_resampling(parser: ArgumentParser, choose: bool = True) -> None:
    """Define how intervals are drawn: --resamples, --seed, and --resample where groups or images may be chosen."""
    if choose:
        parser.add_argument(
            "--resample",
            choices=RESAMPLED,
            help="what the bootstrap draws (default: groups with all their images, where some have several)",
        )
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def add_calibration(parser: ArgumentParser, use: str) -> None:
    """Define --calibration: what calibrate wrote for a network, and what it is used for."""
    parser.add_argument("--calibration", metavar="FILE.json", help=f"what calibrate wrote for this network: {use}")


def add_inference(parser: ArgumentParser) -> None:
    """Define what evaluate and predict have in common: how images reach a network, and how it is computed."""
    parser.add_argument("--fuse", action="store_true", help="fold the network for inference first; the outputs stay")
    parser.add_argument("--device", metavar="DEVICE", help="as cpu or cuda:1; the machine's accelerator by default")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="autocast below float32 (the default)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images; one a core, at most 4")
    parser.add_argument(
        "--trust-pt2", action="store_true", help="read a .pt2 as checkpoint, which can run any code: only one's own"
    )
    add_transform(parser)


def add_transform(parser: ArgumentParser) -> None:
    """Define what a network is and how images reach it, beyond what the checkpoint says."""
    add_model_kwargs(parser)
    parser.add_argument("--img-size", type=int, metavar="N", help="pixels a side, in the place of the training's")
    parser.add_argument(
        "--crop-pct", type=float, metavar="X", help="share of the resized side that the crop keeps, likewise"
    )
    parser.add_argument(
        "--crop-mode",
        choices=CROP_MODES,
        help="how an image of another shape is fitted, likewise: its middle, squashed whole, or whole with a border",
    )
    parser.add_argument("--mean", type=float, nargs="+", metavar="X", help="mean of the normalisation, likewise")
    parser.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation of it, likewise")


def inference_options(args: Namespace) -> dict:
    """What `add_inference` defined, as arguments of `evaluate` and `predict`."""
    names = ("fuse", "device", "precision", "batch_size", "workers", "trust_pt2")
    return {name: getattr(args, name) for name in names} | transform_options(args)


def transform_options(args: Namespace) -> dict:
    """What `add_transform` defined, as arguments of `load_trained`."""
    names = ("model_kwargs", "img_size", "crop_pct", "crop_mode", "mean", "std")
    return {name: getattr(args, name) for name in names}
