"""A Markdown page with the tables and pictures of results."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hifuse_timm.errors import require
from hifuse_timm.files import write_text

from . import ablation, ablation_training, complexity, runtimes, scaling, throughput
from .measure.environment import format_conditions
from .measure.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Section:
    """What the page says of one result.

    Attributes:
        title: Its heading.
        text: Tables and what stands under them, in Markdown.
        figure: Its picture, where it has one.
        caption: What the picture shows.
    """

    title: str
    text: str
    figure: Figure | None = None
    caption: str = ""


def _complexity(data: dict, name: str) -> Section:
    from .figures import complexity_figure

    title = "Published and counted parameters and FLOPs"
    rows = [complexity.Row(**row) for row in data["rows"]]
    text = f"{complexity.format_rows(rows, markdown=True)}\n\n{format_conditions(data['conditions'])}"
    return Section(title, text, complexity_figure(rows), f"{title} of each network")


def _throughput(data: dict, name: str) -> Section:
    from .figures import throughput_figure

    result = Result.from_json(data)
    what = throughput.describe(result.settings)
    return Section(
        f"Throughput: {what}, {name}.json",
        throughput.format_result(result, markdown=True),
        throughput_figure(result),
        f"Images a second against multiply-accumulates, {what}",
    )


def _runtimes(data: dict, name: str) -> Section:
    rows, settings = [runtimes.Row.from_json(row) for row in data["rows"]], runtimes.Settings(**data["settings"])
    text = runtimes.format_rows(rows, settings, data["conditions"], markdown=True)
    return Section(f"PyTorch, ONNX Runtime and OpenVINO, {name}.json", text)


def _scaling(data: dict, name: str) -> Section:
    from .figures import scaling_figure

    points = [scaling.Point.from_json(point) for point in data["points"]]
    return Section(
        "How cost grows with image size",
        scaling.format_points(points, data["conditions"], markdown=True),
        scaling_figure(points),
        "Time, memory and multiply-accumulates against pixels, with fitted power laws",
    )


def _ablation(data: dict, name: str) -> Section:
    rows = [ablation.Row(**row) for row in data["rows"]]
    speed = None if data["throughput"] is None else Result.from_json(data["throughput"])
    text = ablation.format_rows(rows, data["conditions"], speed, markdown=True)
    return Section("Ablation, Table 3: counts and throughput", text)


def _ablation_training(data: dict, name: str) -> Section:
    text = ablation_training.format_result(ablation_training.Result.from_json(data), markdown=True)
    return Section("Ablation, Table 3: trained", text)


SECTIONS = {
    "complexity": _complexity,
    "throughput": _throughput,
    "runtimes": _runtimes,
    "scaling": _scaling,
    "ablation": _ablation,
    "ablation-training": _ablation_training,
}


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks report`."""
    parser.add_argument(
        "results", nargs="+", metavar="RESULT.json", help="files that the other commands wrote with --json"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the page and its pictures")


def _load(path: str) -> dict:
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"RESULT.json: {path} cannot be read ({error})") from error
    if not isinstance(data, dict) or data.get("kind") not in SECTIONS:
        raise ValueError(
            f"RESULT.json: {path} is no result of complexity, throughput, runtimes, scaling or ablation --json"
        )
    return data


def write_page(loaded: dict[str, dict], out: Path, top: Sequence[str] = ()) -> Path:
    """Write report.md, and the pictures under the names of the results.

    Args:
        loaded: Results by the names of their files.
        out: The folder, which is there.
        top: What stands before them, paragraph by paragraph.

    Returns:
        The page.
    """
    from .figures import save

    page = ["# HiFuse and the networks of its paper, measured", *top]
    for name, data in loaded.items():
        section = SECTIONS[data["kind"]](data, name)
        page.append(f"## {section.title}")
        if section.figure is not None:
            save(section.figure, out / name)
            page.append(f"![{section.caption}]({name}.svg)")
        page.append(section.text)
    write_text(out / "report.md", "\n\n".join(page) + "\n")
    return out / "report.md"


def run(args: Namespace) -> None:
    """Write the page and its pictures."""
    require("matplotlib", "benchmarks")
    loaded = {Path(path).stem: _load(path) for path in args.results}
    if len(loaded) < len(args.results):
        raise ValueError("RESULT.json: two results have one name, expected names of their own for their pictures")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    print(write_page(loaded, out))
