"""What `python -m benchmarks suite` measures, in which order, and how far it has come.

A cell is one command of `python -m benchmarks` whose result is a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from hifuse_timm.errors import describe_install
from hifuse_timm.files import write_json

from . import scaling
from .measure.config import PRECISIONS, parse_device
from .measure.result import Limits, Result, Row, Settings
from .networks.specs import parse_spec
from .networks.table4 import NETWORKS

BASELINE = "convnext_base"
# the networks that tell most are measured before the others, which have the baseline beside them once more
CORE = ["hifuse_tiny", BASELINE, "swin_base_patch4_window7_224"]
OTHERS = ["hifuse_tiny[fuse]", "hifuse_small", "hifuse_base", "conformer-base-p16_3rdparty_in1k"]
LARGEST_BATCH = 256  # on a GPU; halved until it fits
CPU_BATCH = 8


class Way(NamedTuple):
    """How networks run.

    Attributes:
        batch: Images a call, 'max' for the largest batch that fits.
    """

    mode: str
    precision: str
    compile: bool
    batch: int | str


_TELLING = (  # the most telling first
    Way("inference", "amp", False, "max"),  # as timm's published runs, by which the rig is checked
    Way("inference", "bfloat16", True, "max"),
    Way("inference", "bfloat16", False, "max"),
    Way("inference", "bfloat16", True, 1),
    Way("inference", "bfloat16", False, 1),
    Way("training", "amp_bfloat16", False, "max"),
    Way("inference", "tf32", False, "max"),
    Way("inference", "float32", False, "max"),
    Way("inference", "float32", False, 1),
)
_FURTHER = (
    Way("inference", "amp", False, 1),
    Way("inference", "tf32", False, 1),
    Way("inference", "amp", True, "max"),
    Way("training", "amp_bfloat16", True, "max"),
    Way("training", "amp", False, "max"),
    Way("inference", "tf32", True, "max"),
    Way("inference", "float32", True, "max"),
    Way("inference", "amp", True, 1),
    Way("inference", "tf32", True, 1),
    Way("inference", "float32", True, 1),
)


@dataclass
class Progress:
    """How far a cell has come.

    Attributes:
        state: 'begun', 'done' or 'failed'; one that is begun and no longer runs was interrupted.
        seconds: How long it ran, over all its runs.
        error: Why its process failed.
    """

    state: str = "begun"
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Suite:
    """All that is to be measured, and what of it is there; it is kept in suite.json.

    Attributes:
        models: Specs in the place of CORE and OTHERS.
        device: Name of the device.
        image_size: Pixels a side.
        channels_last: Whether all networks run in channels_last.
        rounds: Turns of each network.
        conditions: Those of each session.
        progress: That of each cell that was begun, by its name.
    """

    models: list[str] | None
    device: str
    image_size: int = 224
    channels_last: bool = False
    rounds: int = 5
    conditions: list[dict] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Suite:
        """Read what an earlier run has kept.

        Raises:
            ValueError: If there is none.
        """
        path = folder / "suite.json"
        try:
            data = json.loads(path.read_text())
            if data.pop("kind") != "suite":
                raise ValueError("of another kind")
            progress = {name: Progress(**entry) for name, entry in data.pop("progress").items()}
            return cls(**data, progress=progress)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"resume: {path} is no suite that was begun ({error})") from error

    def save(self, folder: Path) -> None:
        """Keep it."""
        write_json(folder / "suite.json", dict(kind="suite", **asdict(self)))


@dataclass
class Cell:
    """One command, and the file of its result.

    Attributes:
        name: That of the file, without .json.
        arguments: Those of `python -m benchmarks`, without the file.
        settings: Of throughput, which finds them in the file.
    """

    name: str
    arguments: list[str]
    settings: Settings | None = None

    def path(self, folder: Path) -> Path:
        """The file in a folder."""
        return folder / f"{self.name}.json"

    def command(self, folder: Path) -> list[str]:
        """The arguments with the file in a folder."""
        return [*self.arguments, "--json" if self.settings is None else "--resume", str(self.path(folder))]

    def prepare(self, folder: Path, counts: dict[str, dict]) -> None:
        """Write the file that throughput is to go on with, unless it is there.

        Args:
            folder: Where.
            counts: See `load_counts`; networks in it are not counted anew in each cell.
        """
        if self.settings is None or self.path(folder).exists():
            return
        result = Result(self.settings)
        for group in self.settings.batch_sizes:
            result.limits.append(Limits(group))
            for model in self.settings.models:
                form = parse_spec(model).form
                counted = None if form.kwargs else counts.get(form.model)
                result.rows.append(Row(model, group, macs=counted and counted["conv_linear"] * 1e9))
        write_json(self.path(folder), result.to_json())

    def load(self, folder: Path) -> dict | None:
        """The result, None where nothing is measured yet."""
        if not self.path(folder).exists():
            return None
        data = json.loads(self.path(folder).read_text())
        rows = data["points"] if data["kind"] == "scaling" else data["rows"]
        measured = data["kind"] == "complexity" or any(row["samples"]["rates"] for row in rows)
        return data if measured else None


def plan(suite: Suite) -> tuple[list[Cell], list[str]]:
    """The cells in their order, and a word on each thing that is left out.

    Raises:
        ValueError: If something cannot be measured here, or not at all.
    """
    on_gpu = parse_device(suite.device).type == "cuda"
    groups = [suite.models] if suite.models else [CORE, [BASELINE, *OTHERS]]
    specs = {model: parse_spec(model) for group in groups for model in group}
    missing = [
        model for model, spec in specs.items() if spec.form.library == "mmpretrain" and not find_spec("mmpretrain")
    ]
    groups = [[model for model in group if model not in missing] for group in groups]
    left_out = [f"{model} needs mmpretrain: {describe_install('peers')}" for model in missing]
    left_out += [f"{model} is folded for inference and does not train" for model, spec in specs.items() if spec.fuse]
    if not on_gpu:
        left_out += [
            "TF32, float16 and CUDA graphs (compile mode reduce-overhead) are a GPU's",
            f"the largest batch that fits is a GPU's, {CPU_BATCH} images take its place",
        ]
    if not groups[0]:
        raise ValueError(f"models: none of them can be measured here: {'; '.join(left_out)}")
    cells = list(_cells(suite, groups, on_gpu))
    if cells[0].name != "complexity":
        left_out.append("complexity counts the networks of Table 4, and there is none of them")
    return cells, left_out


def _cells(suite: Suite, groups: list[list[str]], on_gpu: bool) -> Iterator[Cell]:
    published = {form.model for network in NETWORKS for form in network.forms}
    counted = [model for model in dict.fromkeys(sum(groups, [])) if model in published]
    if counted:
        yield Cell("complexity", ["complexity", "--models", *counted])
    telling, further = (_TELLING, _FURTHER) if on_gpu else _ways_of_cpu()
    for ways in (telling, further):
        for group, suffix in zip(groups, ("", "-others"), strict=False):
            for way in ways:
                models = [model for model in group if way.mode == "inference" or not parse_spec(model).fuse]
                if models:
                    yield _throughput_cell(suite, models, way, suffix)
            if ways is telling and group is groups[0]:
                yield _scaling_cell(suite)


def _ways_of_cpu() -> tuple[list[Way], list[Way]]:
    """Those that make sense on a CPU, eager and compiled: to compile takes minutes there and brings little."""
    precisions = {
        name for name, precision in PRECISIONS.items() if not precision.tf32 and precision.dtype != torch.float16
    }
    ways = [way for way in _TELLING + _FURTHER if way.precision in precisions]
    ways = [way if way.batch == 1 else way._replace(batch=CPU_BATCH) for way in ways]
    return [way for way in ways if not way.compile], [way for way in ways if way.compile]


def _throughput_cell(suite: Suite, models: list[str], way: Way, suffix: str) -> Cell:
    graphs = way.compile and way.batch == 1 and parse_device(suite.device).type == "cuda"
    settings = Settings.of(
        models,
        BASELINE if BASELINE in models else None,
        [way.batch],
        suite.device,
        image_size=suite.image_size,
        precision=way.precision,
        mode=way.mode,
        channels_last=suite.channels_last,
        compile=way.compile,
        rounds=suite.rounds,
        max_batch_size=LARGEST_BATCH,
        compile_mode="reduce-overhead" if graphs else None,
    )
    name = f"{way.mode}-{way.precision}-{'compiled' if way.compile else 'eager'}-{way.batch}{suffix}"
    return Cell(name, ["throughput"], settings)


def _scaling_cell(suite: Suite) -> Cell:
    models = suite.models or scaling.MODELS
    return Cell("scaling", ["scaling", "--device", suite.device, "--rounds", str(suite.rounds), "--models", *models])


def load_counts(folder: Path, image_size: int) -> dict[str, dict]:
    """What complexity has counted at an image size, by the names of the networks."""
    path = folder / "complexity.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {row["model"]: row for row in rows if row["img_size"] == image_size and row["params"] is not None}
