"""Average the figures of several runs of evaluate.

Average what evaluate --json wrote of one model on one dataset, as on the two folds of Kvasir, and show the spread,
beside the paper's figures.
"""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm average`."""
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="the runs, two or more")
    parser.add_argument("--json", metavar="FILE", help="write the averages, for publish --metrics")


def run(args: Namespace) -> None:
    """Average runs of evaluate, print the tables, and write the file asked for."""
    from ..evaluate import average, check_writable, format_result, save_json

    check_writable(args.json)
    result = average(args.runs)
    print(format_result(result))
    if args.json is not None:
        save_json(args.json, result)
        print(f"\nwritten: {args.json}")
