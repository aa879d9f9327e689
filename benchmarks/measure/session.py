"""A throughput measurement as it runs: networks built, warmed up, and called in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from ..networks.specs import parse_spec
from ..networks.table4 import create_network
from .counting import count
from .memory import Memory, measure_in_child, measure_on_cuda
from .result import Limits, Result, Row
from .runner import PRECISIONS, NetworkJob, Runner
from .timing import Contender, Timer, device_probes

LARGEST_BATCH = 8192  # where 'max' begins to halve


@contextmanager
def attempt(row, what: str) -> Iterator[None]:
    """Note in a row, as its error, why what is done inside failed."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        row.error = f"{what}: {type(error).__name__}: {reason}"
    if row.error is not None:
        release_memory()


def release_memory() -> None:
    """Give back what a network that is gone has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def find_largest_batch(make_runner: Callable[[int], Runner], size: int) -> tuple[Runner, int]:
    """Halve a batch size until a network runs twice at it without running out of memory.

    Returns:
        The network, ready to run, and its batch size.

    Raises:
        torch.OutOfMemoryError: If a single image is too much.
    """
    while True:
        try:
            runner = make_runner(size)
            for _ in range(2):  # a training step has its gradients and optimizer state from the second on
                runner.step()
            return runner, size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        runner = None  # what is left of it goes only after the exception, which holds it
        release_memory()
        size //= 2


def prepare_device(device: torch.device, precision: str) -> None:
    """Make a device the current one, and set how it multiplies."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # input sizes seldom change
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def peak_memory(job: NetworkJob) -> Memory | None:
    """Peak memory of a network, on the CPU in a process of its own; None where the system does not tell."""
    return measure_on_cuda(Runner(job)) if torch.device(job.device).type == "cuda" else measure_in_child(job)


def count_macs(model: str, img_size: int) -> float:
    """Multiply-accumulates of the convolutions and linear layers of a network, the same in all its forms."""
    network = create_network(parse_spec(model).form, img_size)
    return count(network, torch.randn(1, 3, img_size, img_size)).conv_linear


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
        make_runner: Callable[[NetworkJob], Runner] = Runner,
        timer: Timer | None = None,
        make_probes: Callable[[torch.device, torch.dtype], tuple[Contender, Contender]] = device_probes,
        measure_memory: Callable[[NetworkJob], Memory | None] = peak_memory,
    ):
        """
        Args:
            result: Where measurements go.
            save: Called after each.
            progress: Bar that says what is being measured.
            make_runner: Builds a network to call.
            timer: Timer of the device.
            make_probes: Builds what measures the matrix-product rate, and what measures the memory bandwidth.
            measure_memory: Measures the peak memory of a network.
        """
        self.result, self.save, self.progress, self.make_runner = result, save, progress, make_runner
        self.settings = result.settings
        self.device = torch.device(self.settings.device)
        self.timer = timer or Timer.on(self.device)
        self.make_probes, self.measure_memory = make_probes, measure_memory

    def run(self) -> None:
        """Measure every batch size."""
        prepare_device(self.device, self.settings.precision)
        self.progress.reset(sum(self._turns_left(group) for group in self.groups()))
        for group in self.groups():
            self._measure_group(group)

    def groups(self) -> list[int | str]:
        """The batch sizes, and 1 for the latency of inference."""
        sizes = self.settings.batch_sizes
        return sizes if self.settings.mode == "training" or 1 in sizes else [*sizes, 1]

    def _turns_left(self, group: int | str) -> int:
        """Turns and memory measurements that a batch size lacks."""
        rows = {row.model: row for row in self.result.group(group)}
        left = 0
        for model in self.settings.models:
            row = rows.get(model, Row(model, group))
            if row.error is None:
                left += self.settings.rounds - len(row.samples.rates) + (row.peak_memory is None)
        return left

    def _measure_group(self, group: int | str) -> None:
        result, settings = self.result, self.settings
        if not self._turns_left(group):
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
            release_memory()
        for row in rows:
            if row.error is None and row.peak_memory is None:
                with self._measurement(row, "memory"):
                    memory = self.measure_memory(settings.job(row.model, row.batch_size))
                    if memory is not None:
                        row.peak_memory, row.excess_memory = memory.peak, memory.excess
                self.progress.update()

    def _measure_rounds(self, rows: list[Row], limits: Limits, finished: int) -> None:
        """Build the networks of a batch size, warm them up, and call them in turns from some round on."""
        settings = self.settings
        latency = limits.group == 1 and settings.mode == "inference"
        torch.compiler.reset()
        running: dict[str, Contender] = {}
        for row in rows:
            if row.error is None:
                with self._measurement(row, "warm-up"):
                    running[row.model] = self._prepare(row, latency)
        probes = self.make_probes(self.device, PRECISIONS[settings.precision])
        for probe in probes:
            probe.warm_up(self.timer)
        for number in range(finished, settings.rounds):
            for samples, probe in zip((limits.matmul, limits.copy), probes, strict=True):
                samples.add_turn(probe, self.timer)
            first = number % len(rows)
            for row in rows[first:] + rows[:first]:
                if row.error is None:
                    with self._measurement(row, f"round {number + 1} of {settings.rounds}"):
                        row.samples.add_turn(running[row.model], self.timer, latency)
                    self.progress.update()
                if row.error is not None:
                    running.pop(row.model, None)

    @contextmanager
    def _measurement(self, row: Row, what: str) -> Iterator[None]:
        """Say what is measured inside, and keep it."""
        self.progress.set_description(f"{row.model}, batch {row.group}, {what}")
        with attempt(row, what):
            yield
        self.save()

    def _prepare(self, row: Row, latency: bool) -> Contender:
        if row.macs is None:
            counted = [other.macs for other in self.result.rows if other.model == row.model and other.macs]
            row.macs = counted[0] if counted else count_macs(row.model, self.settings.image_size)
        if row.group == "max" and row.batch_size is None:
            runner, row.batch_size = find_largest_batch(
                lambda size: self.make_runner(self.settings.job(row.model, size)), LARGEST_BATCH
            )
        else:
            row.batch_size = row.batch_size or row.group
            runner = self.make_runner(self.settings.job(row.model, row.batch_size))
        row.fused_attention = runner.fused_attention
        contender = Contender(row.model, runner.step, row.batch_size)
        contender.warm_up(self.timer, latency)
        return contender
