"""Images a second of networks in PyTorch, ONNX Runtime and OpenVINO, measured in turns: float32, bfloat16 and int8."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from tqdm import tqdm

from hifuse_timm.errors import first_line
from hifuse_timm.export.exporting import choose_images, describe, find_versions
from hifuse_timm.export.writers import WRITERS
from hifuse_timm.exported import ENDINGS, PRECISIONS_OF_FORMATS, Metadata, read_exported
from hifuse_timm.files import check_writable, write_json
from hifuse_timm.loading import Trained

from .measure.config import RunnerConfig, make_runner
from .measure.environment import conditions, format_conditions
from .measure.runner import prepare_device
from .measure.session import Turns, release_memory, with_progress
from .measure.timing import Probe, Runner, Samples, Spread, ratios
from .networks.specs import OPTIONS, build, parse_spec
from .tables import format_spread, format_table

MODELS = ["hifuse_tiny[fuse]", "convnext_base", "convnext_base[conv_mlp]", "swin_base_patch4_window7_224"]
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
PRECISIONS_OF_RUNTIMES = {"pytorch": ("float32", "bfloat16")} | {
    runtime: PRECISIONS_OF_FORMATS[format] for runtime, format in FORMATS.items()
}
PRECISIONS = ("float32", "bfloat16", "int8")
NOISE_IMAGES = 8  # that int8 is calibrated on where there is no dataset


@dataclass
class Settings:
    """What is measured and how.

    Attributes:
        models: Specs, see `benchmarks.networks.specs`.
        baseline: Name of the network, without options, in whose fastest form the ratios are.
        runtimes: Of `PRECISIONS_OF_RUNTIMES`.
        precisions: Of `PRECISIONS`; a runtime that lacks one is left out there.
        batch_sizes: Images a call.
        image_size: Pixels a side of the images.
        rounds: Turns of each.
        calibration: What int8 is calibrated on, in words.
    """

    models: list[str]
    baseline: str
    runtimes: list[str]
    precisions: list[str]
    batch_sizes: list[int]
    image_size: int
    rounds: int
    calibration: str

    def check(self) -> None:
        """Hold the settings against what can be measured, before any work.

        Raises:
            ValueError: If something cannot be.
        """
        specs = [parse_spec(model) for model in self.models]
        for name in ("models", "runtimes", "precisions", "batch_sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name.replace('_', '-')}: {' '.join(map(str, values))} has one twice")
        for spec in specs:
            if spec.form.library != "timm" or spec.compile or spec.channels_last:
                raise ValueError(
                    f"models: {spec.text} is not for runtimes, expected a network of timm with fuse, conv_mlp, "
                    "fused_attn or NAME=VALUE"
                )
        names = dict.fromkeys(spec.form.model for spec in specs)
        if self.baseline not in names:
            raise ValueError(f"baseline: {self.baseline!r} is not measured, expected one of {', '.join(names)}")
        for name, value in (("image-size", self.image_size), ("rounds", self.rounds), *self._sizes()):
            if value < 1:
                raise ValueError(f"{name}: {value} is too few, expected at least 1")
        if not any(
            precision in PRECISIONS_OF_RUNTIMES[name] for name in self.runtimes for precision in self.precisions
        ):
            raise ValueError(f"precision: {' '.join(self.runtimes)} have none of {', '.join(self.precisions)}")

    def _sizes(self) -> list[tuple[str, int]]:
        return [("batch-size", size) for size in self.batch_sizes]


@dataclass
class Row:
    """Measurements of one network in one runtime and precision at one batch size.

    Attributes:
        model: Its spec.
        runtime: What runs it.
        precision: What it computes in.
        batch_size: Images a call.
        samples: Images a second of each round.
        difference: Largest difference of a logit to PyTorch's in float32, as a share of the logits' spread.
        error: Why it was not measured, or not to the end.
    """

    model: str
    runtime: str
    precision: str
    batch_size: int
    samples: Samples = field(default_factory=Samples)
    difference: float | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Which of the measurements it is."""
        return f"{self.model}, {self.runtime}, {self.precision}, batch {self.batch_size}"

    @classmethod
    def from_json(cls, data: dict) -> Row:
        return cls(**data | dict(samples=Samples(**data["samples"])))


def make_rows(settings: Settings) -> list[Row]:
    """All that is measured, in the order of the groups that take turns: a batch size in a runtime."""
    return [
        Row(model, runtime, precision, batch_size)
        for batch_size in settings.batch_sizes
        for runtime in settings.runtimes
        for precision in settings.precisions
        if precision in PRECISIONS_OF_RUNTIMES[runtime]
        for model in settings.models
    ]


class Files:
    """The networks of a measurement, each built from one seed, and what `export` makes of them.

    Args:
        folder: Where the files are; one that is there and of the same weights and versions is taken as it is.
        image_size: Pixels a side of the images.
        calibration: Image files that int8 is calibrated on.
        calibrated_on: What they are, in words.
    """

    def __init__(self, folder: Path, image_size: int, calibration: list[str], calibrated_on: str):
        self.folder, self.image_size, self.calibration = folder, image_size, calibration
        self.calibrated_on = calibrated_on
        self.image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        self.logits: dict[str, torch.Tensor] = {}

    def load(self, model: str) -> Trained:
        """A network, with random weights that are always the same, as `export` takes it."""
        spec = parse_spec(model)
        torch.manual_seed(0)
        network = build(spec, self.image_size).requires_grad_(False)
        config = resolve_data_config(dict(input_size=(3, self.image_size, self.image_size)), model=network)
        transform = create_transform(**config)
        if model not in self.logits:
            with torch.inference_mode():
                self.logits[model] = network(self.image)
        return Trained(spec.form.model, network, {}, config, transform, "RGB", None, None, {})

    def path(self, row: Row) -> Path:
        """Where the network of a row is, or will be."""
        words = [row.model, str(self.image_size), row.precision, self.calibrated_on * (row.precision == "int8")]
        name = re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")
        return self.folder / f"{name}{ENDINGS[FORMATS[row.runtime]]}"

    def write(self, row: Row, trained: Trained) -> None:
        """Write the network of a row by the writers of `export`, if it is not there."""
        format, path = FORMATS[row.runtime], self.path(row)
        versions = find_versions(format, row.precision)
        options = dict(format=format, precision=row.precision, dynamic_batch=True, versions=versions)
        metadata = describe(trained, **options)
        if path.exists() and _read_metadata(path) == metadata:
            return
        WRITERS[format](trained, metadata, self.calibration if row.precision == "int8" else None, path)

    def difference(self, model: str, logits: torch.Tensor) -> float:
        """How far logits of the image are from PyTorch's in float32, as a share of their spread.

        Raises:
            ValueError: If they are not finite.
        """
        expected = self.logits[model]
        if not logits.isfinite().all():
            raise ValueError("the logits hold numbers that are not finite")
        return ((logits.float() - expected).abs().max() / (expected.max() - expected.min())).item()


def _read_metadata(path: Path) -> Metadata | None:
    try:
        return read_exported(path).metadata
    except (ValueError, OSError):
        return None  # written anew


@contextmanager
def open_folder(keep: str | None) -> Iterator[Path]:
    """The folder for exported files: one that stays, or a temporary one for None."""
    if keep is None:
        with TemporaryDirectory(prefix="runtimes-") as folder:
            yield Path(folder)
    else:
        check_writable(keep, directory=True)
        Path(keep).mkdir(exist_ok=True)
        yield Path(keep)


def draw_noise(folder: Path, size: int) -> list[str]:
    """Write images of noise, always the same, and give their names."""
    rng, files = np.random.default_rng(0), []
    for i in range(NOISE_IMAGES):
        files.append(str(folder / f"noise-{i}.png"))
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(files[-1])
    return files


def prepare(rows: list[Row], files: Files, progress: tqdm) -> None:
    """Write what is not there yet, network by network; a row that cannot be exported says why."""
    for model in dict.fromkeys(row.model for row in rows):
        progress.set_description(f"{model}, export")
        trained, tried = files.load(model), {}
        for row in (row for row in rows if row.model == model and row.runtime in FORMATS):
            path = files.path(row)
            if path not in tried:
                progress.set_description(f"{model}, export to {path.name}")
                try:
                    files.write(row, trained)
                    tried[path] = None
                except Exception as error:  # each converter has errors of its own
                    tried[path] = f"export: {type(error).__name__}: {first_line(error)}"
            row.error = tried[path]
        del trained
        release_memory()
        progress.update()


def make(row: Row, files: Files) -> Runner:
    """Something that runs a row's network, whose logits have been compared."""
    if row.runtime == "pytorch":
        config = RunnerConfig(row.model, row.batch_size, files.image_size, "cpu", row.precision, "inference")
        torch.manual_seed(0)
        runner = make_runner(config)
        with torch.inference_mode():
            logits = runner.model(files.image.to(runner.images.dtype))
        row.difference = files.difference(row.model, logits)
        return runner
    network = read_exported(files.path(row))
    row.difference = files.difference(row.model, network(files.image))
    images = torch.randn(row.batch_size, *files.image.shape[1:])
    return Probe(partial(network, images), row.batch_size)


def measure(rows: list[Row], settings: Settings, turns: Turns, files: Files) -> None:
    """Measure group by group: the networks and precisions of a runtime at a batch size take turns."""
    for batch_size in settings.batch_sizes:
        for runtime in settings.runtimes:
            group = [row for row in rows if (row.batch_size, row.runtime) == (batch_size, runtime)]
            for row in group:
                turns.warm_up(row, partial(make, files=files))
            for number in range(settings.rounds):
                first = number % max(len(group), 1)
                for row in group[first:] + group[:first]:
                    turns.take(row, f"round {number + 1} of {settings.rounds}")
            turns.end()


def find_baseline(row: Row, rows: list[Row], settings: Settings) -> Row | None:
    """The fastest form of the baseline in a row's runtime, precision and batch size; None if there is none."""
    forms = [
        other
        for other in rows
        if (other.runtime, other.precision, other.batch_size) == (row.runtime, row.precision, row.batch_size)
        and parse_spec(other.model).form.model == settings.baseline
        and other.samples.rates
    ]
    return max(forms, key=lambda form: Spread.of(form.samples.rates).median, default=None)


def format_rows(rows: list[Row], settings: Settings, conditions: dict, markdown: bool = False) -> str:
    """A table for each batch size, and the conditions."""
    header = ["Network", "Runtime", "Precision", "Images/s", f"Ratio to {settings.baseline}", "int8 over bfloat16"]
    header += ["Difference of logits"]
    text = []
    for batch_size in settings.batch_sizes:
        group, cells = [row for row in rows if row.batch_size == batch_size], []
        for row in group:
            base = find_baseline(row, rows, settings)
            bfloat16 = [
                other
                for other in group
                if row.precision == "int8"
                and (other.model, other.runtime, other.precision) == (row.model, row.runtime, "bfloat16")
            ]
            cells.append(
                [
                    row.model,
                    row.runtime,
                    row.precision,
                    format_spread(Spread.of(row.samples.rates), 2) or "failed" * bool(row.error),
                    "" if base is None else _format_ratio(row, base),
                    _format_ratio(row, bfloat16[0]) if bfloat16 else "",
                    "" if row.difference is None else f"{row.difference:.2%}",
                ]
            )
        text += [f"Batch size {batch_size}, inference, {settings.image_size} pixels:", ""]
        text += [format_table(header, cells, markdown, num_left=3), ""]
        text += [line for row in group if row.error for line in (f"{row.label} failed in {row.error}", "")]
    text += [
        f"Medians, and quartiles in brackets, over {settings.rounds} rounds, in which the networks and precisions of a "
        f"runtime take turns; ratios are taken round by round, to the fastest form of {settings.baseline} in the same "
        "runtime and precision. The difference is the largest of a logit of one image to PyTorch's in float32, as a "
        f"share of their spread, with random weights. int8 is calibrated on {settings.calibration}.",
        "",
        format_conditions(conditions),
    ]
    return "\n".join(text)


def _format_ratio(row: Row, other: Row) -> str:
    return format_spread(Spread.of(ratios(row.samples.rates, other.samples.rates)), 3)


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks runtimes`."""
    options = "; ".join(f"{name}: {OPTIONS[name]}" for name in ("fuse", "conv_mlp", "fused_attn"))
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="SPEC",
        default=MODELS,
        help=f"networks of timm, as NAME or 'NAME[option,...]' ({options}; NAME=VALUE: an argument of the network; "
        f"default: {' '.join(MODELS)})",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="network, without options, that ratios are to, in whichever of its forms in --models is fastest there "
        "(default: convnext_base, else the first)",
    )
    runtimes = list(PRECISIONS_OF_RUNTIMES)
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=runtimes,
        default=runtimes,
        help=f"what runs them (default: {' '.join(runtimes)})",
    )
    there = "; ".join(f"{runtime}: {', '.join(found)}" for runtime, found in PRECISIONS_OF_RUNTIMES.items())
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=list(PRECISIONS),
        dest="precisions",
        help=f"what they compute in, where a runtime has it ({there}; default: all)",
    )
    parser.add_argument(
        "--batch-size", nargs="+", type=int, default=[1, 8], dest="batch_sizes", metavar="N", help="(default: 1 8)"
    )
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="pixels a side (default: 224)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: 5)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of each runtime (default: PyTorch's own number)"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"dataset, as prepare writes it, whose val int8 is calibrated on (default: {NOISE_IMAGES} images of "
        "noise, which is enough to measure speed)",
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="folder for the exported files, to be taken again by the next run (default: none)"
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write the files into the folder of --keep and measure nothing"
    )
    parser.add_argument("--json", metavar="FILE", help="keep each measurement in this file as soon as it is there")


def run(args: Namespace) -> int:
    """Export, measure, print the table, and keep the file up to date.

    Returns:
        Exit code: 130 after an interruption, as shells have it; 1 where a network failed.
    """
    names = [parse_spec(model).form.model for model in args.models]
    images, calibrated_on = [], f"{NOISE_IMAGES} images of noise"
    if args.data_dir is not None:
        images, _ = choose_images(Path(args.data_dir), "int8")
        calibrated_on = f"{len(images)} images of {Path(args.data_dir).name}/val"
    settings = Settings(
        models=args.models,
        baseline=args.baseline or ("convnext_base" if "convnext_base" in names else names[0]),
        runtimes=args.runtimes,
        precisions=args.precisions,
        batch_sizes=args.batch_sizes,
        image_size=args.image_size,
        rounds=args.rounds,
        calibration=calibrated_on,
    )
    settings.check()
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"threads: {args.threads} is too few, expected at least 1")
    if args.export_only and args.keep is None:
        raise ValueError("export-only: the files would not stay; give a folder (--keep)")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    prepare_device(torch.device("cpu"))
    rows, here = make_rows(settings), conditions(torch.device("cpu"))
    for runtime in filter(FORMATS.get, settings.runtimes):
        precisions = [row.precision for row in rows if row.runtime == runtime]
        for precision in dict.fromkeys(precisions):
            here |= find_versions(FORMATS[runtime], precision)

    def save() -> None:
        if args.json:
            data = dict(settings=asdict(settings), conditions=here, rows=[asdict(row) for row in rows])
            write_json(args.json, dict(kind="runtimes", **data))

    def export_and_measure(progress: tqdm) -> None:
        with open_folder(args.keep) as folder, TemporaryDirectory() as noise:
            calibration = images or draw_noise(Path(noise), settings.image_size)
            files = Files(folder, settings.image_size, calibration, calibrated_on)
            progress.reset(len(settings.models) + (0 if args.export_only else len(rows) * (settings.rounds + 1)))
            prepare(rows, files, progress)
            if not args.export_only:
                measure(rows, settings, Turns(progress, save), files)

    code = with_progress(export_and_measure)
    save()
    if args.export_only:
        print("\n".join(dict.fromkeys(f"{row.label} failed in {row.error}" for row in rows if row.error)))
    else:
        print(format_rows(rows, settings, here))
    if code:
        print("\nInterrupted.")
    return code or int(any(row.error for row in rows))
