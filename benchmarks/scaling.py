"""Time, memory and multiply-accumulates against image size, with the exponents that fit them."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from hifuse_timm.files import write_json

from .measure.config import RunnerConfig, make_runner, parse_device
from .measure.counting import count_form
from .measure.environment import conditions, format_conditions, gpu_state
from .measure.memory import peak_memory
from .measure.runner import NetworkRunner, prepare_device
from .measure.session import Turns, with_progress
from .measure.timing import Samples, Spread
from .networks.specs import parse_spec
from .tables import format_spread, format_table

MODELS = ["hifuse_tiny", "vit_base_patch16_224"]
SIZES = [112, 160, 224, 320, 448, 672]


@dataclass
class Point:
    """Measurements of one network at one image size.

    Attributes:
        model: Its spec.
        img_size: Pixels a side.
        macs: Multiply-accumulates for one image, with attention products, norms and pooling.
        samples: Images a second in each round.
        peak_memory: Highest memory in bytes.
        excess_memory: What of it exceeds the weights, and the interpreter with its imports.
        error: Why the network was not measured at this size.
    """

    model: str
    img_size: int
    macs: float | None = None
    samples: Samples = field(default_factory=Samples)
    peak_memory: int | None = None
    excess_memory: int | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Which of the measurements it is."""
        return f"{self.model} at {self.img_size} pixels"

    @classmethod
    def from_json(cls, data: dict) -> Point:
        return cls(**{**data, "samples": Samples(**data["samples"])})

    @property
    def seconds(self) -> float | None:
        """Median time for one image."""
        spread = Spread.of([1 / rate for rate in self.samples.rates])
        return None if spread is None else spread.median


@dataclass(frozen=True)
class PowerLaw:
    """A quantity as coefficient * pixels**exponent, fitted to logarithms by least squares.

    Attributes:
        error: Standard error of the exponent.
    """

    coefficient: float
    exponent: float
    error: float

    def __call__(self, pixels: float) -> float:
        return self.coefficient * pixels**self.exponent

    @classmethod
    def fit(cls, pixels: list[int], values: list[float]) -> PowerLaw | None:
        """The law for some points; None for fewer than three, whose error is not defined."""
        if len(pixels) < 3:
            return None
        (exponent, offset), covariance = np.polyfit(np.log(pixels), np.log(values), 1, cov=True)
        return cls(math.exp(offset), float(exponent), math.sqrt(covariance[0, 0]))


QUANTITIES = dict(seconds="time", excess_memory="memory beyond the fixed", macs="multiply-accumulates")


def measured(points: list[Point], quantity: str) -> list[tuple[int, float]]:
    """Numbers of pixels and values of one of QUANTITIES, where there is one that has a logarithm."""
    values = [(point.img_size**2, getattr(point, quantity)) for point in points]
    return [(pixels, value) for pixels, value in values if value is not None and value > 0]


def fit(points: list[Point], quantity: str) -> PowerLaw | None:
    """How one of QUANTITIES grows with the number of pixels over the points of one network."""
    known = measured(points, quantity)
    return PowerLaw.fit([pixels for pixels, _ in known], [value for _, value in known])


def measure(points: list[Point], device: torch.device, batch_size: int, rounds: int, turns: Turns) -> None:
    """Fill in points, their networks called in turns."""

    def config(point: Point) -> RunnerConfig:
        return RunnerConfig(point.model, batch_size, point.img_size, str(device), "float32", "inference")

    def prepare(point: Point) -> NetworkRunner:
        point.macs = count_form(parse_spec(point.model).form, point.img_size).full
        return make_runner(config(point))

    turns.progress.reset(len(points) * (rounds + 2))
    for point in points:
        turns.warm_up(point, prepare)
    for number in range(rounds):
        for point in points:
            turns.take(point, f"round {number + 1} of {rounds}")
    turns.end()
    for point in points:
        turns.measure_memory(point, peak_memory, config(point))


def by_model(points: list[Point]) -> dict[str, list[Point]]:
    """Points of each network."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.model, []).append(point)
    return found


def format_points(points: list[Point], conditions: dict, markdown: bool = False) -> str:
    """A table of the points, one of the fitted exponents, and the conditions."""
    cells = []
    for point in points:
        milliseconds = Spread.of([1e3 / rate for rate in point.samples.rates])
        cells.append(
            [
                point.model,
                str(point.img_size),
                format_spread(milliseconds, 1) or "failed" * bool(point.error),
                "" if point.seconds is None else f"{1e9 * point.seconds / point.img_size**2:.2f}",
                "" if point.peak_memory is None else f"{point.peak_memory / 1e9:.2f}",
                "" if point.excess_memory is None else f"{point.excess_memory / 1e9:.3f}",
                "" if point.macs is None else f"{point.macs / 1e9:.2f}",
            ]
        )
    header = ["Network", "Pixels a side", "Time (ms)", "Time a pixel (ns)", "Peak memory (GB)"]
    header += ["of it beyond the fixed (GB)", "GMACs in full"]
    text = [format_table(header, cells, markdown), ""]
    text += [line for point in points if point.error for line in (f"{point.label} failed in {point.error}", "")]
    exponents = []
    for model, own in by_model(points).items():
        laws = [fit(own, quantity) for quantity in QUANTITIES]
        exponents.append([model, *("" if law is None else f"{law.exponent:.3f} ± {law.error:.3f}" for law in laws)])
    text += ["Exponents in the number of pixels, with standard errors; 1 is linear in image size:", ""]
    text += [format_table(["Network", *QUANTITIES.values()], exponents, markdown), "", format_conditions(conditions)]
    return "\n".join(text)


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks scaling`."""
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="SPEC", help=f"as of throughput (default: {' '.join(MODELS)})"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=SIZES,
        metavar="PIXELS",
        help=f"pixels a side (default: {' '.join(map(str, SIZES))})",
    )
    parser.add_argument("--device", help="device, as torch names it (default: cuda if there is a GPU, else cpu)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep each measurement in this file as soon as it is there")


def run(args: Namespace) -> int:
    """Measure, print the tables, and keep the file up to date.

    Returns:
        Exit code: 130 after an interruption, as shells have it.
    """
    device = parse_device(args.device)
    for name, value in dict(sizes=min(args.sizes), batch_size=args.batch_size, rounds=args.rounds).items():
        if value < 1:
            raise ValueError(f"{name.replace('_', '-')}: {value} is too few, expected numbers from 1 up")
    for model in args.models:
        parse_spec(model)
    prepare_device(device)
    here = conditions(device, tf32=False)
    points = [Point(model, size) for size in dict.fromkeys(args.sizes) for model in dict.fromkeys(args.models)]

    def save() -> None:
        if args.json:
            data = [asdict(point) for point in points]
            write_json(args.json, dict(kind="scaling", conditions=here, batch_size=args.batch_size, points=data))

    code = with_progress(lambda progress: measure(points, device, args.batch_size, args.rounds, Turns(progress, save)))
    here["gpu_after"] = gpu_state(device)
    save()
    print(format_points(points, here))
    if code:
        print("\nInterrupted.")
    return code
