"""The paper's Tables 4 to 6, or a part of them: networks trained on a dataset, evaluated and compared."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import yaml

from hifuse_timm.errors import require

from .measure.config import parse_device
from .study.cost import format_cost
from .study.recording import Recorder, build_network
from .study.results import find_studies, load_results
from .study.run import Run, parse_models
from .study.study import Study
from .study.tables import format_study, format_summary
from .training.runner import TrainingError


def add_arguments(parser: ArgumentParser) -> None:
    """Define the options of `python -m benchmarks accuracy`."""
    parser.epilog = (
        "Without --run: the commands of train.py. A run that is finished is not repeated, one that was interrupted "
        "goes on, and one that train.py was started on by hand is taken over, where its folder is "
        "CHECKPOINTS/MODEL-seedN."
    )
    parser.add_argument("--data-dir", metavar="DIR", help="prepared dataset: train/CLASS/*, val/CLASS/*, test/CLASS/*")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="networks, NAME of timm or NAME[ARGUMENT=VALUE,...]; the others of a study are compared with its first",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds (default: 0)")
    parser.add_argument(
        "--recipe",
        metavar="TAG|FILE.yaml",
        help="settings of train.py: a tag of python -m hifuse_timm recipe, or a file (default: the dataset's own)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of train.py in the place of the recipe's, as img_size=112 amp=true amp_dtype=bfloat16",
    )
    parser.add_argument(
        "--model-kwargs", nargs="*", default=[], metavar="NAME=VALUE", help="further arguments of all networks"
    )
    parser.add_argument("--device", help="device, as torch names it (default: cuda if there is a GPU, else cpu)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="train and evaluate, one run after the other")
    what.add_argument("--dry-run", action="store_true", help="print the commands and what they cost")
    what.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="train nothing: read the study in DIR, or all studies in it, print their tables and write their pages",
    )
    parser.add_argument(
        "--train-script", default="train.py", metavar="FILE", help="timm's train.py (default: %(default)s)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the study, without images and weights: it can be committed"
    )
    parser.add_argument(
        "--checkpoints", metavar="DIR", help="folder for train.py's folders (default: OUT-checkpoints beside OUT)"
    )


def parse_changes(changes: list[str]) -> dict:
    """Settings of train.py, NAME=VALUE, whose values are read as in a recipe.

    Raises:
        ValueError: If one is not written so.
    """
    parsed = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"set: {change!r} is no setting, expected NAME=VALUE, as img_size=112")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"set: the value of {change!r} cannot be read ({error})") from error
    return parsed


def run(args: Namespace) -> int | str | None:
    """Print the commands of the training, train and evaluate, or read a study, and print its tables.

    Returns:
        Exit code, 130 after an interruption, as shells have it; or what went wrong.
    """
    for name, extra in (("matplotlib", "benchmarks"), ("torchmetrics", "medical"), ("scipy", "medical")):
        require(name, extra)
    given = {option: getattr(args, option) is not None for option in ("data_dir", "models", "out")}
    if args.source is not None:
        if any(given.values()):
            raise ValueError("from: reads what was trained, expected no data-dir, models or out beside it")
        print(write_pages(Path(args.source)))
        return 0
    if not all(given.values()):
        missing = ", ".join(option.replace("_", "-") for option, is_given in given.items() if not is_given)
        raise ValueError(f"{missing}: missing; without them, expected --from and a study to read")
    out = Path(args.out)
    study = Study.read(args.data_dir, args.recipe, parse_changes(args.set))
    study.models = models = parse_models(args.models, args.model_kwargs)
    study.adopt(out)
    runs = [Run(model, seed) for model in models for seed in dict.fromkeys(args.seeds)]
    for model in models:  # what makes no network shows before hours of training
        build_network(Run(model, 0), study)
    checkpoints = Path(args.checkpoints or f"{out}-checkpoints")
    recorder = Recorder(study, args.data_dir, out, checkpoints, args.train_script, str(parse_device(args.device)))
    if args.run:
        return record(recorder, runs)
    print(format_commands(recorder, runs))
    if args.dry_run:
        print(format_cost(recorder, runs))
    return 0


def format_commands(recorder: Recorder, runs: list[Run]) -> str:
    """The commands of train.py, one for each run."""
    study = recorder.study
    changes = "".join(f" {name}={value}" for name, value in study.changes.items())
    lines = [f"# {recorder.out / 'recipe.yaml'}, which --run writes: the recipe {study.recipe}{changes}"]
    return "\n".join([*lines, *(shlex.join(recorder.command(run)) for run in runs)])


def record(recorder: Recorder, runs: list[Run]) -> int | str:
    """Train and evaluate runs, and print the tables of what the study holds then.

    Returns:
        Exit code, or what went wrong.
    """
    failure: int | str = 0
    try:
        recorder.record(runs)
    except KeyboardInterrupt:
        failure = 130
    except TrainingError as error:
        failure = f"python -m benchmarks accuracy: error: {error}"
    if any(map(recorder.is_recorded, runs)):
        print(write_pages(recorder.out))
    if failure:
        print("\nNot all runs are at their end; the same command goes on.")
    return failure


def write_pages(folder: Path) -> str:
    """Write the pages of a study, or of all studies in a folder and the summary of these; gives their tables."""
    from .study.page import write_page, write_summary

    folders = find_studies(folder)
    results = load_results(folder)
    for each, result in zip(folders, results, strict=True):
        write_page(each, result)
    texts = [format_study(result) for result in results]
    if folders != [folder]:
        write_summary(folder, results)
        texts.append(format_summary(results))
    return "\n\n\n".join(texts)
