"""What a training is given: a dataset, a recipe, and the command of train.py."""

from __future__ import annotations

from pathlib import Path

import yaml


def find_split(data_dir: str, split: str | None = None) -> str:
    """The split of a prepared dataset to evaluate on: the one asked for, else test, else val.

    Raises:
        ValueError: If the dataset has no train, no val, or no such split.
    """
    root = Path(data_dir)
    for folder in ("train", "val"):
        if not (root / folder).is_dir():
            raise ValueError(f"data-dir: {data_dir} has no folder {folder}, expected train/CLASS/* and val/CLASS/*")
    split = split or ("test" if (root / "test").is_dir() else "val")
    if not (root / split).is_dir():
        raise ValueError(f"split: {data_dir} has no folder {split}")
    return split


def count_classes(data_dir: str) -> int:
    """Number of the classes in a dataset's train folder."""
    return sum(path.is_dir() for path in (Path(data_dir) / "train").iterdir())


def read_recipe(recipe: str | Path) -> dict:
    """The settings of train.py in a recipe.

    Raises:
        ValueError: If it cannot be read, or holds none.
    """
    try:
        content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"recipe: {recipe} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"recipe: {recipe} holds no settings, expected NAME: VALUE lines of timm's train.py")
    return content


def check_script(script: str, what: str) -> None:
    """Check that train.py is there, before long work.

    Args:
        script: Its path.
        what: What it is needed for, in words.

    Raises:
        ValueError: If it is not.
    """
    if not Path(script).is_file():
        raise ValueError(f"train-script: {script} is no file, expected timm's train.py, to train {what}")


def train_command(
    script: str,
    *,
    recipe: str,
    model: str,
    model_kwargs: list[str],
    data_dir: str,
    num_classes: int,
    output: str,
    experiment: str,
    device: str | None = None,
    seed: int | None = None,
    modules: tuple[str, ...] = ("hifuse_timm",),
) -> list[str]:
    """The command that trains one network.

    Args:
        script: Path of timm's train.py.
        recipe: Path of the recipe.
        model: Name of the network in timm.
        model_kwargs: Arguments of the network, NAME=VALUE.
        data_dir: Prepared dataset.
        num_classes: Number of its classes.
        output: Folder with a folder for each training.
        experiment: Name of the folder of this training.
        device: Name of the device; None for what train.py takes by itself.
        seed: Seed; None for the recipe's, or what train.py takes by itself.
        modules: Modules that register networks with timm.
    """
    return [
        *("python", script, "--device-modules", *modules, "--config", recipe, "--model", model),
        *(["--model-kwargs", *model_kwargs] if model_kwargs else []),
        *("--data-dir", data_dir, "--num-classes", str(num_classes)),
        *(["--device", device] if device else []),
        *(["--seed", str(seed)] if seed is not None else []),
        *("--output", output, "--experiment", experiment),
    ]
