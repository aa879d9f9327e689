"""Average the metrics of several runs of evaluate.

Average what evaluate --json wrote of one model on one dataset, as on the two folds of Kvasir, and show the spread,
beside the paper's metrics. With --predictions, what evaluate --predictions wrote of the same runs, all images are
measured together, too, with intervals over all patients. Needs the extra medical.
"""

from argparse import ArgumentParser, Namespace

from ..files import check_writable, write_json
from .options import add_resampling


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm average`."""
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="the runs, two or more")
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=(),
        metavar="FILE.csv",
        help="predictions of each run, in their order, to be measured together; an image may be in one only",
    )
    parser.add_argument("--json", metavar="FILE", help="write the averages, for publish --metrics")
    add_resampling(parser, choose=False)


def run(args: Namespace) -> None:
    """Average runs of evaluate, write the file asked for, and print the tables."""
    from ..evaluate import average, format_result

    check_writable(args.json)
    result = average(args.runs, args.predictions, resamples=args.resamples, seed=args.seed)
    if args.json is not None:
        write_json(args.json, result)
    print(format_result(result))
    if args.json is not None:
        print(f"\nwritten: {args.json}")
