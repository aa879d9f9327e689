"""The command line: `python -m benchmarks COMMAND --help`."""

import sys
from argparse import ArgumentParser

from hifuse_timm.files import check_writable

from . import ablation, accuracy, complexity, report, runtimes, scaling, suite, throughput, versus

COMMANDS = dict(
    complexity=complexity,
    throughput=throughput,
    runtimes=runtimes,
    versus=versus,
    scaling=scaling,
    suite=suite,
    ablation=ablation,
    accuracy=accuracy,
    report=report,
)


def main(argv: list[str] | None = None) -> int | str | None:
    """Run one command.

    Returns:
        The command's exit code or None, or what is wrong with an argument, for sys.exit.
    """
    parser = ArgumentParser(prog="python -m benchmarks", description="HiFuse against the networks of its paper.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        for option in ("json", "markdown"):
            check_writable(getattr(args, option, None))
        return COMMANDS[args.command].run(args)
    except (ValueError, OSError, RuntimeError) as error:
        return f"python -m benchmarks {args.command}: error: {error}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
