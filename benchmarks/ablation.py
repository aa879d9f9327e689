"""The networks of the ablation, Table 3: parameters, FLOPs and throughput; with a dataset, their training."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from hifuse_timm.files import write_json, write_text

from . import ablation_training, throughput
from .measure.config import parse_device
from .measure.counting import count_form
from .measure.environment import conditions, format_conditions
from .measure.result import Result, Settings
from .measure.session import Session, with_progress
from .measure.timing import Spread
from .networks.specs import build, parse_spec
from .networks.table3 import CONFIGURATIONS, find_configuration
from .tables import format_spread, format_table
from .training.runner import TrainingError


@dataclass
class Row:
    """Counts of one network of Table 3.

    Attributes:
        slug: Which row it is, see `benchmarks.networks.table3`.
        model: Its spec, under which its throughput is found.
        params: Parameters in millions.
        conv_linear: 10^9 multiply-accumulates of convolutions and linear layers.
        full: The same with matrix products, attention, norms and pooling.
    """

    slug: str
    model: str
    params: float
    conv_linear: float
    full: float


def count_row(slug: str, spec: str, image_size: int) -> Row:
    """Count one network."""
    counted = count_form(parse_spec(spec).form, image_size)
    return Row(slug, spec, counted.params / 1e6, counted.conv_linear / 1e9, counted.full / 1e9)


def format_rows(rows: list[Row], conditions: dict, speed: Result | None, markdown: bool = False) -> str:
    """A table of counts, of throughput where it was measured, and of the paper's metrics.

    Args:
        rows: The counts.
        conditions: Where they were made.
        speed: Throughput of the networks; None where it was not measured.
        markdown: Whether the table is for a Markdown page.
    """
    groups = [] if speed is None else [limits.group for limits in speed.limits]
    header = ["Table 3", "--model-kwargs", "Params (M)", "Conv + linear (G)", "In full (G)"]
    header += [f"Images/s, batch {group}" for group in groups] + ["Acc% in the paper", "F1% in the paper"]
    cells, failures = [], []
    for row in rows:
        published = find_configuration(row.slug)
        rates = []
        for group in groups:
            measured = next(m for m in speed.group(group) if m.model == row.model)
            if measured.error is not None:
                failures += ["", f"{published.name}, batch size {group}, failed in {measured.error}"]
            rates.append(format_spread(Spread.of(measured.samples.rates), 2))
        arguments = " ".join(published.arguments)
        cells.append(
            [
                published.name,
                f"`{arguments}`" if markdown and arguments else arguments,
                *(f"{value:.2f}" for value in (row.params, row.conv_linear, row.full)),
                *rates,
                f"{published.accuracy:.2f}",
                f"{published.f1:.2f}",
            ]
        )
    text = [format_table(header, cells, markdown, num_left=2), *failures]
    if groups:
        what, rounds = throughput.describe(speed.settings), speed.settings.rounds
        text += ["", f"Images a second: {what}; medians, and quartiles in brackets, over {rounds} rounds."]
        text += [
            f"Batch size {limits.group}: {throughput.format_limits(limits)}"
            for limits in speed.limits
            if limits.matmul.rates
        ]
    text += ["", format_conditions(conditions)]
    return "\n".join(text)


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks ablation`."""
    parser.epilog = (
        "Without --data-dir: counts and throughput. With it: the commands that train and evaluate the five networks, "
        "or, with --run, their training and the table of their metrics."
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of all five networks beside those of their rows, as depths=(1,1,1,1)",
    )
    parser.add_argument("--device", help="device, as torch names it (default: cuda if there is a GPU, else cpu)")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file")
    speed = parser.add_argument_group("counts and throughput")
    throughput.add_batch_sizes(speed)
    speed.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="pixels a side (default: 224)")
    speed.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="turns of each network; 0 for counts alone (default: 5)"
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--data-dir", metavar="DIR", help="prepared dataset: train/CLASS/*, val/CLASS/*, test/CLASS/*"
    )
    training.add_argument(
        "--recipe",
        metavar="FILE.yaml",
        help="settings of timm's train.py; python -m hifuse_timm recipe TAG prints the path of the paper's",
    )
    training.add_argument("--run", action="store_true", help="train and evaluate the networks, one after the other")
    training.add_argument("--train-script", metavar="FILE", help="timm's train.py")
    training.add_argument(
        "--out",
        default="output/ablation",
        metavar="DIR",
        help="folder for checkpoints and metrics; what is trained there is not trained again (default: %(default)s)",
    )
    training.add_argument(
        "--split", choices=("test", "val"), help="split to evaluate on (default: test, if there is one)"
    )


def run(args: Namespace) -> int | str | None:
    """Count and measure, or train.

    Returns:
        Exit code, 130 after an interruption, as shells have it; or what went wrong.
    """
    if args.data_dir is None:
        given = [name for name in ("recipe", "run", "train_script", "split") if getattr(args, name)]
        if given:
            raise ValueError(f"{given[0].replace('_', '-')}: needs data-dir, the dataset to train on")
        return run_counts(args)
    if args.recipe is None:
        raise ValueError(
            "recipe: missing, expected the settings of train.py; python -m hifuse_timm recipe TAG prints the path of "
            "the paper's"
        )
    return run_training(args)


def run_counts(args: Namespace) -> int:
    """Count and measure the networks, print the table, and write the files asked for."""
    if args.image_size < 32 or args.rounds < 0:
        raise ValueError("image-size, rounds: expected at least 32 pixels and 0 rounds")
    specs = {row.slug: row.spec(args.model_kwargs) for row in CONFIGURATIONS}
    device = parse_device(args.device)
    here = conditions(device)
    speed = None
    if args.rounds:
        settings = Settings.of(
            list(specs.values()),
            specs["shortcut"],
            args.batch_sizes,
            str(device),
            image_size=args.image_size,
            rounds=args.rounds,
        )
        speed = Result(settings, [here])
    rows = []
    progress = tqdm(specs.items(), unit="network", disable=None)
    for slug, spec in progress:
        progress.set_description(f"{spec}, counted")
        rows.append(count_row(slug, spec, args.image_size))

    def save() -> None:
        if args.json:
            measured = None if speed is None else speed.to_json()
            data = dict(kind="ablation", conditions=here, rows=[asdict(row) for row in rows], throughput=measured)
            write_json(args.json, data)

    save()
    code = 0
    if speed is not None:
        code = with_progress(
            lambda progress: Session(speed, save, progress, measure_memory=lambda *_, **__: None).run()
        )
    print(format_rows(rows, here, speed))
    if args.markdown:
        write_text(args.markdown, format_rows(rows, here, speed, markdown=True) + "\n")
    if code:
        print("\nInterrupted.")
    return code


def run_training(args: Namespace) -> int | str:
    """Print the commands of the training, or train, print the table of metrics, and write the files asked for."""
    settings = ablation_training.Settings.read(args.data_dir, args.recipe, args.split, args.model_kwargs)
    device = parse_device(args.device)
    commands = ablation_training.Commands(
        settings, args.recipe, args.out, args.train_script or "train.py", str(device) if args.run else args.device
    )
    with torch.device("meta"):  # arguments that make no network show before hours of training
        for row in CONFIGURATIONS:
            build(parse_spec(row.spec(args.model_kwargs)), args.image_size)
    if not args.run:
        print(commands)
        return 0
    result = ablation_training.load_result(Path(args.out), settings)
    if any(row.metrics is None for row in result.rows):
        result.conditions.append(conditions(device))
    failure: int | str = 0
    try:
        ablation_training.run(result, commands)
    except KeyboardInterrupt:
        failure = 130
    except TrainingError as error:
        failure = f"python -m benchmarks ablation: error: {error}"
    print(ablation_training.format_result(result))
    if failure:
        print("\nNot all networks are trained; the same command goes on.")
    if args.json:
        write_json(args.json, result.to_json())
    if args.markdown:
        write_text(args.markdown, ablation_training.format_result(result, markdown=True) + "\n")
    return failure
