"""Calibrate probabilities and choose thresholds on val.

Fit a temperature to what evaluate --predictions wrote of the validation images, and choose for each class the threshold
that reaches a wanted sensitivity or specificity there. predict, evaluate and publish take the file with --calibration.
Needs the extra medical.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from ..errors import require
from ..files import check_writable, write_json
from .options import add_resampling


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm calibrate`."""
    parser.epilog = (
        "Thresholds are of calibrated probabilities, a class against the rest, and reach at least what is wanted on "
        "the images that they are chosen on; what they reach on others is measured by evaluate --calibration. Without "
        "any of --sensitivity, --specificity and --youden, each class has the threshold of Youden's index. Intervals "
        "are percentiles over resampled groups where the predictions name them, else over images."
    )
    parser.add_argument(
        "--predictions", required=True, metavar="VAL.csv", help="what evaluate --predictions wrote of the val images"
    )
    parser.add_argument(
        "--run",
        metavar="VAL.json",
        help="what evaluate --json wrote beside it: the calibration is of its weights then, and refused for others",
    )
    parser.add_argument("--out", required=True, metavar="FILE.json", help="calibration to write")
    for name, which in (("sensitivity", "highest"), ("specificity", "lowest")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=_split_share,
            default=[],
            metavar="CLASS=SHARE",
            help=f"the {which} threshold of a class that has this {name}, as MEL=0.95",
        )
    parser.add_argument(
        "--youden", nargs="+", default=[], metavar="CLASS", help="the threshold of the greatest Youden index"
    )
    parser.add_argument(
        "--no-thresholds", action="store_true", help="choose none, where the probabilities alone are to be calibrated"
    )
    undecided = parser.add_mutually_exclusive_group()
    undecided.add_argument(
        "--undecided-below", type=float, metavar="P", help="decide nothing where the greatest probability is under P"
    )
    undecided.add_argument(
        "--undecided-share", type=float, metavar="SHARE", help="the bound under which this share of images is, or less"
    )
    add_resampling(parser, choose=False)


def _split_share(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not like CLASS=0.95") from None


def run(args: Namespace) -> None:
    """Fit a calibration, write it, and print what it is."""
    from ..calibrate import calibrate
    from ..operating_points import format_calibration

    require("tabulate", "medical")  # before long work
    if args.no_thresholds and (args.sensitivity or args.specificity or args.youden):
        raise ValueError("no_thresholds given, and what a threshold is chosen by too: give one or the other")
    check_writable(args.out)
    calibration = calibrate(
        args.predictions,
        args.run,
        sensitivity=args.sensitivity,
        specificity=args.specificity,
        youden=() if args.no_thresholds else args.youden or None,
        undecided_below=args.undecided_below,
        undecided_share=args.undecided_share,
        resamples=args.resamples,
        seed=args.seed,
    )
    write_json(args.out, calibration)
    print(format_calibration(calibration))
    print(f"\nwritten: {args.out}")
