"""Write a page of evaluations side by side, as of folds or of networks.

Write one HTML file that needs nothing from a network: metrics with their intervals beside the paper's, confusion
matrices, ROC and precision-recall curves with bands, reliability, the most confident mistakes and the least certain
images by name, and the conditions, of one run or of several of the same classes. evaluate --report writes it with the
images. Needs the extra medical.
"""

from argparse import ArgumentParser, Namespace

from ..files import check_writable


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm report`."""
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="what evaluate --json wrote")
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="FILE.csv",
        help="what evaluate --predictions wrote, for each run, in the same order",
    )
    parser.add_argument("--out", required=True, metavar="FILE.html", help="page to write")


def run(args: Namespace) -> None:
    """Write the page."""
    from ..report import read_runs, write_report

    check_writable(args.out)
    write_report(args.out, read_runs(args.runs, args.predictions), args.argv)
    print(f"written: {args.out}")
