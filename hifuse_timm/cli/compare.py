"""Compare networks by their predictions for the same images.

Compare what evaluate --predictions or predict wrote of several networks for the same images: differences of accuracy,
balanced accuracy, macro F1 and AUROC from the first network, with paired bootstrap intervals, over patients where a
column group names them, McNemar's exact test, for two classes DeLong's test, and Holm's correction for several.
"""

from argparse import ArgumentParser, Namespace

from ..errors import require
from ..files import check_writable, write_json, write_text
from .options import add_resampling


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm compare`."""
    parser.epilog = (
        "Images and classes are matched by their names. The true classes stand in the column class, and the groups in "
        "the column group, of one table or more; evaluate writes them, predict does not know them. Both tests take "
        "images as independent. Needs the extra medical."
    )
    parser.add_argument(
        "predictions",
        nargs="+",
        metavar="FILE.csv",
        help="tables of predictions, two or more; others against the first",
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was found")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables in Markdown")
    add_resampling(parser)


def run(args: Namespace) -> None:
    """Compare the networks, write the files asked for, and print the tables."""
    from ..compare import compare, format_comparison

    require("tabulate", "medical")
    check_writable(args.json)
    check_writable(args.markdown)
    comparison = compare(args.predictions, resample=args.resample, resamples=args.resamples, seed=args.seed)
    written = []
    try:
        if args.json is not None:
            write_json(args.json, comparison)
            written.append(args.json)
        if args.markdown is not None:
            write_text(args.markdown, format_comparison(comparison, markdown=True) + "\n")
            written.append(args.markdown)
    finally:  # what was found is shown where it cannot be written, too
        print(format_comparison(comparison))
    if written:
        print(f"\nwritten: {', '.join(written)}")
