"""The paper's Tables 4 to 6, or a part of them: networks trained on a dataset, evaluated and compared."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import yaml

from .measure.config import parse_device
from .study.recording import Recorder, create_on_meta
from .study.run import Run, parse_models
from .study.study import Study
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
    parser.add_argument("--run", action="store_true", help="train and evaluate, one run after the other")
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
    """Print the commands of the training, or train and evaluate.

    Returns:
        Exit code, 130 after an interruption, as shells have it; or what went wrong.
    """
    for option in ("data_dir", "models", "out"):
        if getattr(args, option) is None:
            raise ValueError(f"{option.replace('_', '-')}: missing")
    out = Path(args.out)
    study = Study.read(args.data_dir, args.recipe, parse_changes(args.set))
    study.models = models = parse_models(args.models, args.model_kwargs)
    study.adopt(out)
    runs = [Run(model, seed) for model in models for seed in args.seeds]
    for each in {each.model: each for each in runs}.values():  # what makes no network shows before hours of training
        create_on_meta(each, study)
    checkpoints = Path(args.checkpoints or f"{out}-checkpoints")
    recorder = Recorder(study, args.data_dir, out, checkpoints, args.train_script, str(parse_device(args.device)))
    if not args.run:
        for each in runs:
            print(shlex.join(recorder.command(each)))
        return 0
    try:
        recorder.record(runs)
    except KeyboardInterrupt:
        return 130
    except TrainingError as error:
        return (
            f"python -m benchmarks accuracy: error: {error}\nNot all runs are at their end; the same command goes on."
        )
    return 0
