"""The command line, `python -m hifuse_timm COMMAND`: a module a command.

The docstring of a module is the help of its command, `add_arguments` defines the options, and `run` runs it. What a
command alone needs is imported there, so that the help of each costs no more than `import hifuse_timm`.
"""

import io
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from ..errors import describe_install
from ..text import printable
from . import (
    average,
    calibrate,
    compare,
    convert,
    demo,
    evaluate,
    example,
    explain,
    export,
    predict,
    prepare,
    publish,
    recipe,
    report,
    run,
    warm_start,
)

__all__ = ["main"]

_COMMANDS = {
    "example": example,
    "prepare": prepare,
    "evaluate": evaluate,
    "average": average,
    "compare": compare,
    "calibrate": calibrate,
    "report": report,
    "predict": predict,
    "publish": publish,
    "recipe": recipe,
    "warm-start": warm_start,
    "convert": convert,
    "explain": explain,
    "demo": demo,
    "export": export,
    "run": run,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments behind the program's name, those of the process by default.

    Returns:
        Exit code: 0; 1 after an error of the user's, 130 after Ctrl-C, either of which was said in a line on stderr. A
        script that `run` runs ends as it ends by itself.
    """
    argv = sys.argv[1:] if argv is None else argv
    script_args = []
    if argv[:1] == ["run"]:  # what follows the script is the script's, --help too
        argv, script_args = argv[:2], argv[2:]
    args = _make_parser().parse_args(argv, Namespace(script_args=script_args, argv=argv))
    if args.command == "run":  # so are its errors, its Ctrl-C and its output
        return run.run(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show is no error
    code, error = 0, None
    try:
        code = _COMMANDS[args.command].run(args) or 0
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
    except (ValueError, OSError, RuntimeError) as e:
        # names of files are in it, which may hold what moves a terminal's cursor
        code, error = 1, "\n".join(map(printable, f"error: {e}".splitlines()))
    if unwritten := _flush_output():
        code, error = code or 1, error or f"error: {unwritten}"
    if error:
        print(error, file=sys.stderr)
    return code


def _flush_output() -> str | None:
    """Write out what was printed, or say why that cannot be.

    What cannot be written is dropped: the interpreter would try again at its end, and fail with an error of its own.
    """
    if sys.stdout is None:
        return "standard output is closed"
    try:
        sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output cannot be written: {e.strerror}"
    return None


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m hifuse_timm",
        description="HiFuse for timm: from datasets to published weights; timm's scripts with the models registered.",
        epilog=f"COMMAND --help names the extra that it needs. To install medical:\n  {describe_install('medical')}",
        formatter_class=RawDescriptionHelpFormatter,  # which breaks no line to copy
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        summary, description = module.__doc__.split("\n\n", 1)
        summary = summary[0].lower() + summary[1:].rstrip(".")
        module.add_arguments(subparsers.add_parser(name, help=summary, description=description))
    return parser
