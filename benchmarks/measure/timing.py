"""Measurements taken in turns: what to call, how long its calls take, and the samples with their spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

import torch

WARMUP_CALLS = 3
WARMUP_SECONDS = 1.0
TURN_SECONDS = 0.5
LATENCY_CALLS = 10  # in a turn, so that several rounds have enough for a 95th percentile


def percentile(samples: list[float], percent: int) -> float:
    """Percentile of some samples, interpolated between the two nearest."""
    return samples[0] if len(samples) == 1 else quantiles(samples, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some samples."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        return cls(*(percentile(samples, percent) for percent in (25, 50, 75)))


@dataclass
class Timer:
    """A clock that waits for the device before it is read.

    Attributes:
        synchronize: Waits until the device has done all that it was given.
        clock: Returns seconds.
    """

    synchronize: Callable[[], None]
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def on(cls, device: torch.device) -> Timer:
        """A timer for a device."""
        return cls((lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None))

    def time(self, step: Callable[[], None], calls: int) -> float:
        """Seconds that some calls take one after another."""
        self.synchronize()
        start = self.clock()
        for _ in range(calls):
            step()
        self.synchronize()
        return self.clock() - start


@dataclass
class Contender:
    """Something to call in turns with others.

    Attributes:
        name: What it is.
        step: One call.
        amount: What one call gets done: images, operations or bytes.
        calls: Number of calls in a turn.
    """

    name: str
    step: Callable[[], None]
    amount: float
    calls: int = 1

    def warm_up(self, timer: Timer, latency: bool = False) -> None:
        """Call until caches, clocks and compilers have settled, and set the calls of a turn from the last one."""
        start, calls, seconds = timer.clock(), 0, 0.0
        while calls < WARMUP_CALLS or timer.clock() - start < WARMUP_SECONDS:
            seconds = timer.time(self.step, 1)
            calls += 1
        self.calls = max(math.ceil(TURN_SECONDS / seconds), LATENCY_CALLS if latency else 1)

    def take_turn(self, timer: Timer, latency: bool = False) -> list[float]:
        """Seconds of each call with latency, else the mean over the calls of the turn, which then run back to back."""
        if latency:
            return [timer.time(self.step, 1) for _ in range(self.calls)]
        return [timer.time(self.step, self.calls) / self.calls]


@dataclass
class Samples:
    """What the turns of one contender gave.

    Attributes:
        rates: Amount a second in each round.
        call_seconds: Seconds of each call of each round, where calls were timed one by one.
    """

    rates: list[float] = field(default_factory=list)
    call_seconds: list[list[float]] = field(default_factory=list)

    def add_turn(self, contender: Contender, timer: Timer, latency: bool = False) -> None:
        """Have the contender take its turn of a round."""
        seconds = contender.take_turn(timer, latency)
        self.rates.append(contender.amount * len(seconds) / sum(seconds))
        if latency:
            self.call_seconds.append(seconds)

    def keep_rounds(self, rounds: int) -> None:
        """Forget the rounds after the first so many."""
        del self.rates[rounds:], self.call_seconds[rounds:]


def ratios(rates: list[float], baseline: list[float]) -> list[float]:
    """Ratio to the baseline in each round that both took part in."""
    return [rate / other for rate, other in zip(rates, baseline, strict=False)]


def _matrix_products(device: torch.device, dtype: torch.dtype, size: int) -> list[Callable[[], None]]:
    """The ways in which PyTorch multiplies two square matrices on a device."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    ways = [lambda: torch.mm(a, b, out=product)]
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # what convolutions run on, up to twice as fast as the BLAS, MKL, where the CPU is not of the same maker
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "none"))
    return ways


def device_probes(device: torch.device, dtype: torch.dtype) -> tuple[Contender, Contender]:
    """What a device can do at most, to be measured like a network.

    Returns:
        The product of two square matrices, large enough to keep the device busy, in the fastest of PyTorch's ways, its
        amount operations, and the copy of a tensor larger than any cache, its amount bytes read and written.
    """
    size = 8192 if device.type == "cuda" else 2048
    timer = Timer.on(device)
    multiply = min(
        _matrix_products(device, dtype, size), key=lambda step: min(timer.time(step, 1) for _ in range(WARMUP_CALLS))
    )
    source = torch.randn(2**28, device=device)  # 1 GiB
    copy = torch.randn(2**28, device=device)
    return (
        Contender("matrix product", multiply, 2 * size**3),
        Contender("memory copy", lambda: copy.copy_(source), 2 * source.nbytes),
    )
