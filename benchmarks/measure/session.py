"""Networks as they are measured: built, warmed up, and called in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from tqdm import tqdm

from hifuse_timm.errors import first_line

from ..networks.specs import parse_spec
from .config import PRECISIONS, RunnerConfig, make_runner
from .counting import count_form
from .memory import Memory, peak_memory
from .result import Limits, Result, Row
from .runner import NetworkRunner, prepare_device
from .timing import Clock, Probe, Runner, device_probes, read_clock

SHARE_OF_MEMORY = 0.75  # of a GPU, within which 'max' has to fit: the networks that it takes turns with are there too


def release_memory() -> None:
    """Give back what a network that is gone has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _part_of_memory(device: torch.device) -> Iterator[None]:
    """Have memory run out inside where a part of a GPU's is in use."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(SHARE_OF_MEMORY, device)
    try:
        yield
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def find_largest_batch(make: Callable[[int], NetworkRunner], size: int) -> tuple[NetworkRunner, list[int]]:
    """Halve a batch size until a network runs twice at it without running out of memory.

    Returns:
        The network, ready to run, and the sizes at which memory ran out.

    Raises:
        torch.OutOfMemoryError: If a single image is too much.
    """
    too_large: list[int] = []
    while True:
        try:
            runner = make(size)
            for _ in range(2):  # a training step has its gradients and optimizer state from the second on
                runner.step()
            return runner, too_large
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        too_large.append(size)
        runner = None  # what is left of it goes only after the exception, which holds it
        release_memory()
        size //= 2


def with_progress(measure: Callable[[tqdm], None]) -> int:
    """Measure under a progress bar.

    Returns:
        Exit code: 130 after an interruption, as shells have it.
    """
    with tqdm(unit="turn", disable=None, smoothing=0) as progress:
        try:
            measure(progress)
        except KeyboardInterrupt:
            return 130
    return 0


class Turns:
    """Networks called in turns. Each has a row that keeps what they give; one that fails takes no further turn.

    A row is a `Row`, a `Point` of scaling, or has their `label`, `samples`, `peak_memory`, `excess_memory` and `error`.
    """

    def __init__(self, progress: tqdm, save: Callable[[], None], clock: Clock = read_clock):
        """
        Args:
            progress: Bar that says what is being measured.
            save: Called after each measurement.
            clock: Clock of the turns.
        """
        self.progress, self.save, self.clock = progress, save, clock
        self.running: dict[str, Runner] = {}

    @contextmanager
    def measurement(self, row, what: str) -> Iterator[None]:
        """Say what is measured inside, note in the row why it failed, and keep it."""
        self.progress.set_description(f"{row.label}, {what}")
        try:
            yield
        except Exception as error:
            row.error = f"{what}: {type(error).__name__}: {first_line(error)}"
        if row.error is not None:
            self.running.pop(row.label, None)
            release_memory()
        self.progress.update()
        self.save()

    def warm_up(self, row, make: Callable[..., Runner], latency: bool = False) -> None:
        """Make the runner of a row, and warm it up."""
        if row.error is None:
            with self.measurement(row, "warm-up"):
                self.running[row.label] = make(row)
                self.running[row.label].warm_up(self.clock, latency)

    def take(self, row, round: str, latency: bool = False) -> None:
        """Have a row's runner take its turn of a round."""
        if row.error is None:
            with self.measurement(row, round):
                row.samples.add_turn(self.running[row.label], self.clock, latency)

    def end(self) -> None:
        """Let the runners go."""
        self.running.clear()
        release_memory()

    def measure_memory(self, row, measure: Callable[[RunnerConfig], Memory | None], config: RunnerConfig) -> None:
        """Fill in the memory of a row, where the system tells it."""
        if row.error is None and row.peak_memory is None:
            with self.measurement(row, "memory"):
                memory = measure(config)
                if memory is not None:
                    row.peak_memory, row.excess_memory = memory.peak, memory.excess


class Session:
    """Measures what a result lacks.

    Networks of a batch size are built, warmed up, and called in turns; the one that begins changes from round to round.
    A round that was interrupted is measured again, since its ratios hold only if its turns followed each other.
    """

    def __init__(
        self,
        result: Result,
        save: Callable[[], None],
        progress: tqdm,
        make_runner: Callable[[RunnerConfig], NetworkRunner] = make_runner,
        clock: Clock = read_clock,
        make_probes: Callable[[torch.device, torch.dtype], tuple[Probe, Probe]] = device_probes,
        measure_memory: Callable[[RunnerConfig, NetworkRunner | None], Memory | None] = peak_memory,
    ):
        """
        Args:
            result: Where measurements go.
            save: Called after each.
            progress: Bar that says what is being measured.
            make_runner: Builds a network to call.
            clock: Clock of the turns.
            make_probes: Builds what measures the matrix-product rate, and what measures the memory bandwidth.
            measure_memory: Measures the peak memory of a network, which may be there already.
        """
        self.result, self.settings = result, result.settings
        self.device = torch.device(self.settings.device)
        self.turns = Turns(progress, save, clock)
        self.make_runner, self.make_probes, self.measure_memory = make_runner, make_probes, measure_memory

    def run(self) -> None:
        """Measure every batch size."""
        prepare_device(self.device, PRECISIONS[self.settings.precision].tf32)
        groups = self.settings.batch_sizes
        self.turns.progress.reset(sum(self._steps_left(group) for group in groups))
        for group in groups:
            self._measure_group(group)

    def _steps_left(self, group: int | str) -> int:
        """Warm-ups, turns and memory measurements that a batch size lacks."""
        rows = self.result.group(group) or [Row(model, group) for model in self.settings.models]
        rows = [row for row in rows if row.error is None]
        turns = [self.settings.rounds - len(row.samples.rates) for row in rows]
        return sum(turns) + len(rows) * any(turns) + sum(row.peak_memory is None for row in rows)

    def _measure_group(self, group: int | str) -> None:
        result, settings = self.result, self.settings
        if not self._steps_left(group):
            return
        if not result.group(group):
            result.rows += [Row(model, group) for model in settings.models]
            result.limits.append(Limits(group))
        rows, limits = result.group(group), result.limits_of(group)
        finished = min((len(row.samples.rates) for row in rows if row.error is None), default=settings.rounds)
        if finished < settings.rounds:
            for samples in (limits.matmul, limits.copy, *(row.samples for row in rows)):
                samples.keep_rounds(finished)
            self._measure_rounds(rows, limits, finished)
            if self.device.type == "cuda":  # of the networks that are there: to compile them again takes long
                self._measure_memory(rows)
            self.turns.end()
        self._measure_memory(rows)

    def _measure_memory(self, rows: list[Row]) -> None:
        for row in rows:
            measure = partial(self.measure_memory, runner=self.turns.running.get(row.label))
            self.turns.measure_memory(row, measure, self.settings.runner_config(row.model, row.batch_size))

    def _measure_rounds(self, rows: list[Row], limits: Limits, finished: int) -> None:
        """Build the networks of a batch size, warm them up, and call them in turns from some round on."""
        settings, clock = self.settings, self.turns.clock
        latency = limits.group == 1 and settings.mode == "inference"
        torch.compiler.reset()
        for row in rows:
            self.turns.warm_up(row, self._prepare, latency)
        probes = self.make_probes(self.device, PRECISIONS[settings.precision].dtype)
        for probe in probes:
            probe.warm_up(clock)
        for number in range(finished, settings.rounds):
            for samples, probe in zip((limits.matmul, limits.copy), probes, strict=True):
                samples.add_turn(probe, clock)
            first = number % len(rows)
            for row in rows[first:] + rows[:first]:
                self.turns.take(row, f"round {number + 1} of {settings.rounds}", latency)

    def _prepare(self, row: Row) -> NetworkRunner:
        """Count the network of a row, and build it at its batch size."""

        def make(size: int) -> NetworkRunner:
            return self.make_runner(self.settings.runner_config(row.model, size))

        if row.macs is None:  # the same in all its forms
            row.macs = count_form(parse_spec(row.model).form, self.settings.image_size).conv_linear
        if row.group == "max" and row.batch_size is None:
            with _part_of_memory(self.device):
                runner, row.out_of_memory = find_largest_batch(make, self.settings.max_batch_size)
            row.batch_size = runner.amount
        else:
            row.batch_size = row.batch_size or row.group
            runner = make(row.batch_size)
        row.fused_attention = runner.fused_attention
        return runner
