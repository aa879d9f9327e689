"""Run a Python script with the models registered.

Run a Python script, as timm's validate.py, with the models registered with timm. What follows SCRIPT is handed to it.
Under torchrun: torchrun --nproc_per_node 2 -m hifuse_timm run SCRIPT ARGS ...
"""

import sys
import types
from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m hifuse_timm run`; what follows SCRIPT is not the parser's."""
    parser.usage = "%(prog)s SCRIPT [ARGS ...]"
    parser.add_argument("script", metavar="SCRIPT", help="the script")


def run(args: Namespace) -> int:
    """Run a Python script as `python SCRIPT ARGS...` would, in this process.

    Its exit code and its errors pass through; the traceback of an error starts in the script.

    Returns:
        Exit code: 2 if the script cannot be read, 130 after Ctrl-C, as shells have it, else 0.
    """
    script = args.script
    try:
        source = Path(script).read_bytes()
    except OSError as e:
        print(f"error: script {script} cannot be read: {e.strerror}", file=sys.stderr)
        return 2
    sys.argv = [script, *args.script_args]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(script).resolve().parent)
    module = types.ModuleType("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module

    def print_error(kind, error, traceback):
        while traceback is not None and traceback.tb_frame.f_globals is not module.__dict__:
            traceback = traceback.tb_next
        sys.__excepthook__(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = print_error
    try:
        exec(compile(source, script, "exec"), module.__dict__)
    except KeyboardInterrupt:  # after which `python -m` alone would end with 1
        sys.excepthook(*sys.exc_info())
        return 130
    return 0
