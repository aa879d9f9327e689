"""A Markdown page with the tables and pictures of results."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import ablation, ablation_training, complexity, scaling, throughput
from .measure.environment import format_conditions
from .measure.result import Result


def _complexity(data: dict, picture: Path) -> str:
    from .figures import complexity_figure, save

    rows = [complexity.Row(**row) for row in data["rows"]]
    save(complexity_figure(rows), picture)
    table = complexity.format_rows(rows, markdown=True)
    return "\n".join(
        [
            "## Published and counted parameters and FLOPs",
            "",
            f"![Published and counted parameters and FLOPs of each network]({picture.name}.svg)",
            "",
            table,
            "",
            format_conditions(data["conditions"]),
        ]
    )


def _throughput(data: dict, picture: Path) -> str:
    from .figures import save, throughput_figure

    result = Result.from_json(data)
    save(throughput_figure(result), picture)
    what = throughput.describe(result.settings)
    return "\n".join(
        [
            f"## Throughput: {what}, {picture.name}.json",
            "",
            f"![Images a second against multiply-accumulates, {what}]({picture.name}.svg)",
            "",
            throughput.format_result(result, markdown=True),
        ]
    )


def _scaling(data: dict, picture: Path) -> str:
    from .figures import save, scaling_figure

    points = [scaling.Point(**{**point, "samples": scaling.Samples(**point["samples"])}) for point in data["points"]]
    save(scaling_figure(points), picture)
    return "\n".join(
        [
            "## How cost grows with image size",
            "",
            f"![Time, memory and multiply-accumulates against pixels, with fitted power laws]({picture.name}.svg)",
            "",
            scaling.format_points(points, data["conditions"], markdown=True),
        ]
    )


def _ablation(data: dict, picture: Path) -> str:
    rows = [ablation.Row(**row) for row in data["rows"]]
    speed = None if data["throughput"] is None else Result.from_json(data["throughput"])
    table = ablation.format_rows(rows, data["conditions"], speed, markdown=True)
    return f"## Ablation, Table 3: counts and throughput\n\n{table}"


def _ablation_training(data: dict, picture: Path) -> str:
    table = ablation_training.format_result(ablation_training.Result.from_json(data), markdown=True)
    return f"## Ablation, Table 3: trained\n\n{table}"


SECTIONS = {
    "complexity": _complexity,
    "throughput": _throughput,
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
        raise ValueError(f"RESULT.json: {path} is no result of complexity, throughput, scaling or ablation --json")
    return data


def run(args: Namespace) -> None:
    """Write the page, and the pictures under the names of the results."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("report needs matplotlib: pip install 'hifuse-timm[benchmarks]' brings it") from error
    loaded = {Path(path).stem: _load(path) for path in args.results}
    if len(loaded) < len(args.results):
        raise ValueError("RESULT.json: two results have one name, expected names of their own for their pictures")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    sections = ["# HiFuse and the networks of its paper, measured"]
    sections += [SECTIONS[data["kind"]](data, out / stem) for stem, data in loaded.items()]
    page = out / "report.md"
    page.write_text("\n\n".join(sections) + "\n")
    print(page)
