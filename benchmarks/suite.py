"""All that the other commands measure of a machine, in one go: the most telling first, each result kept at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryFile

import torch
from tqdm import tqdm

from hifuse_timm.errors import require
from hifuse_timm.files import check_writable

from .measure.config import parse_device
from .measure.environment import conditions
from .measure.memory import last_line
from .suite_cells import CORE, OTHERS, Cell, Progress, Suite, load_counts, plan
from .suite_page import write_results
from .throughput import add_networks

ROOT = Path(__file__).parents[1]
_UNITS = dict(s=1, m=60, h=3600)
_GRACE_SECONDS = 30  # for a command to keep what it has


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks suite`."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for all results, tables and the page")
    parser.add_argument(
        "--budget", type=_parse_time, metavar="TIME", help="end with a page after 90s, 9m or 2h (default: no end)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the suite in DIR, as it was set up")
    add_networks(parser, [*CORE, *OTHERS])


def _parse_time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no time, expected a number with s, m or h, as 90s, 9m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def open_suite(args: Namespace) -> Suite:
    """A new suite, or the one that is to go on.

    Raises:
        ValueError: If there is one already, there is none to go on with, or it has other settings.
    """
    given = {field.name: getattr(args, field.name, None) for field in fields(Suite)}
    given = {name: value for name, value in given.items() if value is not None}
    out = Path(args.out)
    if args.resume:
        if given:
            raise ValueError(f"resume: {out} has its own settings; leave out {', '.join(given)}")
        return Suite.load(out)
    if (out / "suite.json").exists():
        raise ValueError(f"out: {out} has a suite already; add --resume to go on with it, or give a new folder")
    return Suite(**dict(models=None) | given | dict(device=str(parse_device(args.device))))


def execute(arguments: list[str], seconds: float | None) -> tuple[str, str | None]:
    """Run a command of `python -m benchmarks` in a process of its own.

    Args:
        arguments: Its arguments.
        seconds: After which it is interrupted; never for None.

    Returns:
        How it ended, as `Progress.state` has it, and why it failed, if so.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(paths))
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment) as process,
    ):
        try:
            status = process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            _interrupt(process)
            if isinstance(error, KeyboardInterrupt):
                raise
            return "begun", None
        if status == 0:
            return "done", None
        if status < 0:
            return "failed", f"ended by {signal.Signals(-status).name}"
        errors.seek(0)
        return "failed", last_line(errors.read(), status)


def _interrupt(process: subprocess.Popen) -> None:
    """Have a command keep what it has and end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def measure(suite: Suite, cells: list[Cell], folder: Path, budget: float | None) -> None:
    """Run what is not done, what failed before behind the rest, until the budget of seconds ends."""
    end = None if budget is None else time.monotonic() + budget
    states = {name: progress.state for name, progress in suite.progress.items()}
    to_do = [cell for cell in cells if states.get(cell.name) != "done"]
    bar = tqdm(sorted(to_do, key=lambda cell: states.get(cell.name) == "failed"), unit="cell", disable=None)
    for cell in bar:
        start = time.monotonic()
        if end is not None and start >= end:
            break
        bar.set_description(cell.name)
        progress = suite.progress.setdefault(cell.name, Progress())
        progress.state, progress.error = "begun", None
        suite.save(folder)
        try:
            cell.prepare(folder, load_counts(folder, suite.image_size))
            progress.state, progress.error = execute(cell.command(folder), end and end - start)
        finally:
            progress.seconds += time.monotonic() - start
            suite.save(folder)


def run(args: Namespace) -> int:
    """Measure, and write the page of all that is there.

    Returns:
        Exit code: 130 after an interruption, as shells have it; 1 where a process failed.
    """
    require("matplotlib", "benchmarks")
    folder = Path(args.out)
    suite = open_suite(args)
    cells, left_out = plan(suite)
    check_writable(folder, directory=True)
    folder.mkdir(exist_ok=True)
    suite.conditions.append(conditions(torch.device(suite.device)))
    suite.save(folder)
    code = 0
    try:
        measure(suite, cells, folder, args.budget)
    except KeyboardInterrupt:
        code = 130
    print(write_results(suite, cells, left_out, folder))
    states = [suite.progress[cell.name].state if cell.name in suite.progress else "" for cell in cells]
    if any(state != "done" for state in states):
        print(f"\nNot all is measured; --out {folder} --resume goes on.")
    print(f"\n{folder / 'report.md'}")
    return code or int("failed" in states)
