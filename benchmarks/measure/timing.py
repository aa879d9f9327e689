"""Measurements taken in turns: what to call, how long its calls take, and the samples with their spread."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

import torch

Clock = Callable[[], float]  # gives seconds

WARMUP_CALLS = 3
WARMUP_SECONDS = 1.0
TURN_SECONDS = 0.5
LATENCY_CALLS = 20  # in a turn, so that five rounds have enough for a 99th percentile
MATRIX_SIZES = dict(cpu=2048, cuda=8192)
COPIED_NUMBERS = 2**28  # 1 GiB


def read_clock() -> float:
    """Seconds on a clock that is read when the accelerator has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def percentile(samples: list[float], percent: int) -> float:
    """Percentile of some samples, interpolated between the two nearest."""
    return samples[0] if len(samples) == 1 else quantiles(samples, n=100, method="inclusive")[percent - 1]


def high_percentile(samples: list[float], percent: int) -> float | None:
    """The same, where so many samples tell it that one or more lie beyond it, else None."""
    return percentile(samples, percent) if len(samples) * (100 - percent) >= 100 else None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some samples."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread | None:
        """That of some samples; None where there are none."""
        if not samples:
            return None
        return cls(*(percentile(samples, percent) for percent in (25, 50, 75)))


class Runner(ABC):
    """Something to call in turns with others.

    Attributes:
        amount: What one call gets done: images, operations or bytes.
        calls: Number of calls in a turn.
    """

    amount: float
    calls: int = 1

    @abstractmethod
    def step(self) -> None:
        """One call."""

    def time(self, calls: int, clock: Clock) -> float:
        """Seconds that some calls take one after another."""
        start = clock()
        for _ in range(calls):
            self.step()
        return clock() - start

    def warm_up(self, clock: Clock = read_clock, latency: bool = False) -> None:
        """Call until caches, clocks and compilers have settled, and set the calls of a turn from the last one."""
        start, calls, seconds = clock(), 0, 0.0
        while calls < WARMUP_CALLS or clock() - start < WARMUP_SECONDS:
            seconds = self.time(1, clock)
            calls += 1
        self.calls = max(math.ceil(TURN_SECONDS / seconds), LATENCY_CALLS if latency else 1)

    def take_turn(self, clock: Clock = read_clock, latency: bool = False) -> list[float]:
        """Seconds of each call with latency, else the mean over the calls of the turn, which then run back to back."""
        if latency:
            return [self.time(1, clock) for _ in range(self.calls)]
        return [self.time(self.calls, clock) / self.calls]


@dataclass
class Probe(Runner):
    """A function to call in turns with networks.

    Attributes:
        function: What one call calls.
    """

    function: Callable[[], None]
    amount: float

    def step(self) -> None:
        self.function()


@dataclass
class Samples:
    """What the turns of one runner gave.

    Attributes:
        rates: Amount a second in each round.
        call_seconds: Seconds of each call of each round, where calls were timed one by one.
    """

    rates: list[float] = field(default_factory=list)
    call_seconds: list[list[float]] = field(default_factory=list)

    def add_turn(self, runner: Runner, clock: Clock = read_clock, latency: bool = False) -> None:
        """Have the runner take its turn of a round."""
        seconds = runner.take_turn(clock, latency)
        self.rates.append(runner.amount * len(seconds) / sum(seconds))
        if latency:
            self.call_seconds.append(seconds)

    def keep_rounds(self, rounds: int) -> None:
        """Forget the rounds after the first so many."""
        del self.rates[rounds:], self.call_seconds[rounds:]


def ratios(rates: list[float], baseline: list[float]) -> list[float]:
    """Ratio to the baseline in each round that both took part in."""
    return [rate / other for rate, other in zip(rates, baseline, strict=False)]


def _matrix_product(device: torch.device, dtype: torch.dtype) -> Probe:
    """The product of two square matrices, in the fastest of PyTorch's ways; its amount is operations."""
    size = MATRIX_SIZES[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    ways = [lambda: torch.mm(a, b, out=product)]
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # what convolutions run on, up to twice as fast as the BLAS, MKL, where the CPU is not of the same maker
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "none"))
    probes = [Probe(way, 2 * size**3) for way in ways]
    return min(probes, key=lambda probe: min(probe.time(1, read_clock) for _ in range(WARMUP_CALLS)))


def device_probes(device: torch.device, dtype: torch.dtype) -> tuple[Probe, Probe]:
    """What a device can do at most, to be measured like a network.

    Returns:
        The product of two matrices, large enough to keep the device busy, and the copy of a tensor larger than any
        cache, its amount bytes read and written.
    """
    source, copy = (torch.randn(COPIED_NUMBERS, device=device) for _ in range(2))
    return _matrix_product(device, dtype), Probe(lambda: copy.copy_(source), 2 * source.nbytes)
