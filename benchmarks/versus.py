"""Whether a change made networks faster or slower: this checkout against another, in turns."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

import torch
from tqdm import tqdm

from hifuse_timm.files import write_json

from .measure.config import PRECISIONS, RunnerConfig
from .measure.environment import conditions, format_conditions, gpu_state
from .measure.memory import last_line
from .measure.result import Settings
from .measure.session import Turns, with_progress
from .measure.timing import Spread, ratios
from .networks.table4 import timm_arguments
from .tables import format_spread, format_table
from .throughput import add_batch_sizes, add_settings, describe, given_settings

MODELS = ["hifuse_tiny", "hifuse_tiny[fuse]"]
ROOT = Path(__file__).parents[1]


@dataclass
class Row:
    """One network at one batch size, with the hifuse_timm of both checkouts.

    Attributes:
        model: Its spec.
        batch_size: Images a call.
        here: Images a second in each round with this checkout.
        there: The same with the other.
        difference: Largest absolute difference of their logits, with weights and images from the same seed.
        error: Why it was not measured, or not to the end.
    """

    model: str
    batch_size: int
    here: list[float] = field(default_factory=list)
    there: list[float] = field(default_factory=list)
    difference: float | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Which of the measurements it is."""
        return f"{self.model}, batch {self.batch_size}"


def worker_config(config: RunnerConfig) -> dict:
    """What `benchmarks.measure.worker` is to run.

    Raises:
        ValueError: If no checkout can build it.
    """
    spec = config.parse()
    if spec.form.library != "timm" or spec.conv_mlp or spec.fused_attn is not None:
        raise ValueError(
            f"models: {spec.text} is not for versus, expected a network of timm with fuse, compile, channels_last, "
            "grad_checkpointing or NAME=VALUE"
        )
    arguments = config.runner_arguments()
    return dict(
        network=timm_arguments(spec.form, config.img_size),
        fuse=spec.fuse,
        grad_checkpointing=spec.grad_checkpointing,
        tf32=PRECISIONS[config.precision].tf32,
        runner=arguments | dict(dtype=str(arguments["dtype"]).removeprefix("torch.")),
    )


@dataclass
class Worker:
    """A process that runs one network with the hifuse_timm of a checkout, see `start_worker`."""

    checkout: Path
    process: subprocess.Popen
    errors: TextIO

    def read(self) -> list[float] | float:
        """What it says: when its network is warm, the first logits; after a turn, the seconds of a call.

        Raises:
            RuntimeError: If it has ended.
        """
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        status = self.process.wait()
        self.errors.seek(0)
        raise RuntimeError(f"{self.checkout}: {last_line(self.errors.read(), status)}")

    def take_turn(self) -> float:
        """Seconds of a call, the mean over those of a turn."""
        with suppress(BrokenPipeError):  # why it has ended is read then
            os.write(self.process.stdin.fileno(), b"\n")
        return self.read()


@contextmanager
def start_worker(checkout: Path, config: dict) -> Iterator[tuple[Worker, list[float]]]:
    """A worker, warm, which lives as long as what is done inside, and the first logits of its network."""
    command = [sys.executable, "-m", "benchmarks.measure.worker", str(checkout), json.dumps(config)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with TemporaryFile("w+") as errors, subprocess.Popen(command, cwd=ROOT, stderr=errors, **pipes) as process:
        try:
            worker = Worker(checkout, process, errors)
            yield worker, worker.read()
        finally:
            process.kill()


def measure(row: Row, checkout: Path, config: dict, rounds: int, turns: Turns) -> None:
    """Fill in a row: its two workers take turns, and the one that begins changes from round to round."""
    with (
        turns.measurement(row, "turns"),
        start_worker(ROOT, config) as (here, logits),
        start_worker(checkout, config) as (there, other_logits),
    ):
        if not all(map(math.isfinite, logits + other_logits)):
            raise ValueError("the logits hold numbers that are not finite")
        row.difference = max(abs(a - b) for a, b in zip(logits, other_logits, strict=True))
        order = [(here, row.here), (there, row.there)]
        for _ in range(rounds):
            for worker, rates in order:
                rates.append(row.batch_size / worker.take_turn())
            order.reverse()
            turns.progress.update()


def format_rows(rows: list[Row], settings: Settings, checkout: str, conditions: dict) -> str:
    """A table of both checkouts and their ratio, and the conditions."""
    header = ["Network", "Batch size", "Images/s here", f"Images/s in {checkout}", "Ratio", "Largest difference"]
    cells = [
        [
            row.model,
            str(row.batch_size),
            *(format_spread(Spread.of(rates), 2) for rates in (row.here, row.there)),
            format_spread(Spread.of(ratios(row.here, row.there)), 3),
            "" if row.difference is None else f"{row.difference:.2g}",
        ]
        for row in rows
    ]
    text = [format_table(header, cells), ""]
    text += [line for row in rows if row.error for line in (f"{row.label} failed in {row.error}", "")]
    text += [
        f"{describe(settings)}: medians, and quartiles in brackets, over {settings.rounds} rounds; ratios are taken "
        "round by round. The difference is that of the logits, with weights and images from one seed.",
        "",
        format_conditions(conditions),
    ]
    return "\n".join(text)


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks versus`."""
    parser.add_argument("checkout", metavar="DIR", help="another checkout of this repository, as git worktree adds one")
    add_settings(parser, MODELS)
    add_batch_sizes(parser)
    parser.add_argument("--json", metavar="FILE", help="keep each measurement in this file as soon as it is there")


def run(args: Namespace) -> int:
    """Measure, print the table, and keep the file up to date.

    Returns:
        Exit code: 130 after an interruption, as shells have it; 1 where a network failed.
    """
    checkout = Path(args.checkout).resolve()
    if not (checkout / "hifuse_timm" / "__init__.py").is_file():
        raise ValueError(f"DIR: {args.checkout} has no hifuse_timm, expected a checkout of this repository")
    settings = Settings.of(**dict(models=MODELS) | given_settings(args))
    rows = [Row(model, batch_size) for batch_size in settings.batch_sizes for model in settings.models]
    configs = [worker_config(settings.runner_config(row.model, row.batch_size)) for row in rows]
    device = torch.device(settings.device)
    here = conditions(device, PRECISIONS[settings.precision].tf32)

    def save() -> None:
        if args.json:
            data = dict(settings=asdict(settings), conditions=here, rows=[asdict(row) for row in rows])
            write_json(args.json, dict(kind="versus", **data))

    def measure_all(progress: tqdm) -> None:
        progress.reset(len(rows) * (settings.rounds + 1))
        turns = Turns(progress, save)
        for row, config in zip(rows, configs, strict=True):
            measure(row, checkout, config, settings.rounds, turns)

    code = with_progress(measure_all)
    here["gpu_after"] = gpu_state(device)
    save()
    print(format_rows(rows, settings, args.checkout, here))
    if code:
        print("\nInterrupted.")
    return code or int(any(row.error for row in rows))
