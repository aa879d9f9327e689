"""Trains the runs of a study, evaluates them, and keeps all but images and weights in the study's folder."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from tqdm import tqdm

from hifuse_timm.files import sha256, write_json, write_text

from ..measure.environment import conditions
from ..networks import peers
from ..training.evaluation import evaluate_checkpoint
from ..training.history import History
from ..training.runner import TrainingError, train
from ..training.settings import check_script, train_command
from .run import Record, Run, check_history, load_record
from .study import Study, write_recipe

if TYPE_CHECKING:
    from hifuse_timm.evaluate import Evaluation

# the images squashed whole into the square, which the paper's text says, where its authors' code crops
SQUASHED = dict(crop_mode="squash", crop_pct=1.0)


@dataclass
class Recorder:
    """Trains and evaluates the runs of a study.

    Attributes:
        study: The study.
        data_dir: Its prepared dataset.
        out: Its folder.
        checkpoints: Folder with a folder of train.py for each run.
        script: Path of timm's train.py.
        device: Name of the device.
    """

    study: Study
    data_dir: str
    out: Path
    checkpoints: Path
    script: str
    device: str

    def history(self, run: Run) -> History:
        return History(self.checkpoints / run.name)

    def command(self, run: Run) -> list[str]:
        """The command that trains a run."""
        arguments = run.model_kwargs(self.study.img_size)
        return train_command(
            self.script,
            recipe=str(self.recipe(run)),
            model=run.spec.form.model,
            model_kwargs=[f"{name}={value}".replace(" ", "") for name, value in arguments.items()],
            data_dir=self.data_dir,
            num_classes=self.study.num_classes,
            output=str(self.checkpoints),
            experiment=run.name,
            device=self.device,
            seed=run.seed,
            modules=("hifuse_timm", peers.__name__) if run.is_peer else ("hifuse_timm",),
        )

    def recipe(self, run: Run) -> Path:
        """The recipe of a run: that of the study, without drop_path where its network has no stochastic depth."""
        return self.out / ("recipe.yaml" if self.settings(run) == self.study.settings else "recipe-no-drop-path.yaml")

    def settings(self, run: Run) -> dict:
        """The settings of the study, without a drop_path of 0 for a network that would take none."""
        settings = dict(self.study.settings)
        if settings.get("drop_path") == 0 and not (run.is_peer or takes_drop_path(run.spec.form.model)):
            del settings["drop_path"]
        return settings

    def record(self, runs: list[Run]) -> None:
        """Train and evaluate the runs that the study lacks, one after the other.

        Raises:
            TrainingError: If one cannot be trained or evaluated; what was done before is kept.
            ValueError: If there is something to train and no train.py, a setting that train.py does not know, or a
                folder of another training.
        """
        missing = [run for run in runs if not self.is_recorded(run)]
        for run in missing:
            check_history(self.history(run), self.expected(run))
        untrained = [run.name for run in missing if not self.history(run).is_complete()]
        if untrained:
            check_script(self.script, ", ".join(untrained))
            check_names(self.script, self.study.settings)
        self.study.save(self.out)
        for run in missing:
            write_recipe(self.recipe(run), self.settings(run))
        for number, run in enumerate(missing, start=1):
            history, what = self.history(run), f"{number}/{len(missing)} {run.name}"
            done, total = len(history.epochs()), self.study.epochs
            with tqdm(total=total, initial=done, unit="epoch", desc=what, disable=None) as progress:
                if not history.is_complete():
                    self.train(run, progress)
                progress.set_description(f"{what}, evaluated")
                self.evaluate(run)

    def epochs_left(self, run: Run) -> int:
        """How many epochs are left to train."""
        if self.is_recorded(run):
            return 0
        return self.study.epochs - 1 - max(self.history(run).epochs(), default=-1)

    def is_recorded(self, run: Run) -> bool:
        """Whether a run is at its end.

        Raises:
            ValueError: If its folder holds another.
        """
        record = load_record(self.out / run.name)
        if record is not None and record.run != run:
            raise ValueError(
                f"out: {self.out / run.name} holds {record.model}, seed {record.seed}; give another folder"
            )
        return record is not None

    def expected(self, run: Run) -> dict:
        """The arguments of train.py that make a run."""
        arguments = run.model_kwargs(self.study.img_size)
        own = dict(model=run.spec.form.model, model_kwargs=arguments, num_classes=self.study.num_classes, seed=run.seed)
        return self.settings(run) | own

    def train(self, run: Run, progress: tqdm) -> None:
        """Train a run to its end, and note under which conditions."""
        history = self.history(run)
        history.folder.mkdir(parents=True, exist_ok=True)
        session = conditions(torch.device(self.device))
        session |= dict(
            train_script_sha256=sha256(Path(self.script)), first_epoch=max(history.epochs(), default=-1) + 1
        )
        write_json(history.folder / "sessions.json", dict(sessions=[*read_sessions(history.folder), session]))
        train(self.command(run), history, progress)

    def evaluate(self, run: Run) -> None:
        """Evaluate all checkpoints of a run, and write its folder."""
        history, folder = self.history(run), self.out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        evaluations = {epoch: self.measure(run, path) for epoch, path in history.kept_checkpoints().items()}
        accuracies = {epoch: evaluation.result["accuracy"] for epoch, evaluation in evaluations.items()}
        chosen = dict(best=history.best_epoch(), last=max(history.epochs()))
        if chosen["best"] not in evaluations:
            raise TrainingError(f"{history.checkpoint(chosen['best'])}, of the best epoch, is not there")
        files = {choice: evaluations[epoch] for choice, epoch in chosen.items()}
        for choice, epoch in chosen.items():
            files[f"{choice}-squash"] = self.measure(run, history.kept_checkpoints()[epoch], **SQUASHED)
        if self.study.split == "test":
            chosen["best-on-test"] = max(accuracies, key=accuracies.get)
            files["best-on-test"] = evaluations[chosen["best-on-test"]]
        for name, evaluation in files.items():
            self.save(evaluation, folder / name)
        self.write_table(folder / "checkpoints.csv", history, accuracies)
        self.copy_texts(history, folder)
        params = sum(parameter.numel() for parameter in build_network(run, self.study).parameters())
        metric, epochs = history.settings()["eval_metric"], max(history.epochs()) + 1
        evaluated, sessions = self.hide_in(conditions(torch.device(self.device))), read_sessions(history.folder)
        Record(run.model, run.seed, params, metric, epochs, chosen, evaluated, self.hide_in(sessions)).save(folder)

    def measure(self, run: Run, checkpoint: Path, **options) -> Evaluation:
        """Evaluate a network after one of its epochs."""
        return evaluate_checkpoint(
            run.spec.form.model,
            self.data_dir,
            checkpoint,
            split=self.study.split,
            use_ema=bool(self.study.settings.get("model_ema")),
            device=self.device,
            workers=self.study.settings.get("workers"),
            **options,
        )

    def save(self, evaluation: Evaluation, path: Path) -> None:
        """Write the metrics and the predictions; path has no ending."""
        write_json(path.with_name(f"{path.name}.json"), self.hide_in(evaluation.result))
        evaluation.save_predictions(path.with_name(f"{path.name}.csv"))

    def write_table(self, path: Path, history: History, accuracies: dict[int, float]) -> None:
        """Write the metric on val and the accuracy on test of each checkpoint that train.py kept."""
        lines, metrics = io.StringIO(), history.epochs()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["epoch", f"val_{history.settings()['eval_metric']}", f"{self.study.split}_accuracy"])
        writer.writerows([epoch, metrics[epoch], accuracy] for epoch, accuracy in accuracies.items())
        write_text(path, lines.getvalue())

    def copy_texts(self, history: History, folder: Path) -> None:
        """Copy what train.py wrote, without the folders of this machine."""
        for name in ("args.yaml", "summary.csv", "epochs.csv", "train.log"):
            source = history.folder / name
            if source.exists():
                write_text(folder / name, self.hide(source.read_text(encoding="utf-8", errors="replace")))

    def hide_in(self, content: list | dict) -> list | dict:
        """The content of a JSON file, likewise."""
        return json.loads(self.hide(json.dumps(content)))

    def hide(self, text: str) -> str:
        """The text with names in the place of this machine's folders."""
        known = dict(
            DATA_DIR=Path(self.data_dir),
            CHECKPOINTS=self.checkpoints,
            OUT=self.out,
            TRAIN_PY=Path(self.script),
        )
        return hide_folders(text, known)


def build_network(run: Run, study: Study, on_meta: bool = True) -> torch.nn.Module:
    """The network of a run with random weights.

    Args:
        run: The run.
        study: Its study.
        on_meta: Whether to build it without memory for its weights, where its library can.

    Raises:
        ValueError: If it cannot be built.
        RuntimeError: If the library that has it is not installed.
    """
    # as train.py asks for it
    arguments = dict(drop_rate=study.settings.get("drop", 0.0), drop_path_rate=study.settings.get("drop_path") or None)
    arguments |= run.model_kwargs(study.img_size)
    try:
        with torch.device("meta" if on_meta and not run.is_peer else "cpu"):
            return timm.create_model(run.spec.form.model, num_classes=study.num_classes, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"models: {run.model} cannot be built ({error})") from error


@cache
def takes_drop_path(model: str) -> bool:
    """Whether a network of timm has stochastic depth."""
    try:
        with torch.device("meta"):
            timm.create_model(model, drop_path_rate=0.0)
    except TypeError:
        return False
    return True


def read_sessions(folder: Path) -> list[dict]:
    """Conditions of each session that trained a run; none of what was trained by hand."""
    path = folder / "sessions.json"
    return json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []


def check_names(script: str, settings: Iterable[str]) -> None:
    """Check that train.py knows all settings: what it does not know in its --config, it passes over.

    Raises:
        ValueError: If it does not, or cannot tell.
    """
    asked = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    if asked.returncode:
        error = (asked.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"train-script: {script} --help ended with exit status {asked.returncode}: {error}")
    known = {name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]*)", asked.stdout)}
    for name in settings:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, sorted(known))) or "none"
            raise ValueError(f"set, recipe: {script} has no setting {name}; near it: {near}")


def hide_folders(text: str, known: dict[str, Path]) -> str:
    """The text with names in the place of these folders, and of any other absolute path only its last part."""
    paths = [(str(form), name) for name, path in known.items() for form in (path, path.absolute(), path.resolve())]
    for path, name in sorted(paths, key=lambda pair: -len(pair[0])):
        if path.startswith(("/", "..")):
            text = re.sub(rf"{re.escape(path)}(?![\w.-])", name, text)
    return re.sub(r"(?<![\w.:/<-])(?:/[\w.@%+~-]+)+/(?=[\w.])", "", text)
