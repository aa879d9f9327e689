"""What a study found, read from the files of its folder: no images, no weights, nothing that is trained."""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

from hifuse_timm.predictions import Predictions, align, read_predictions

from ..training.history import History, read_seconds
from .run import Record, load_record
from .study import Study, load_study

CHOICES = {  # of weights: in words
    "best": "best epoch on val",
    "last": "last epoch",
    "best-on-test": "best on the test images among the checkpoints kept, optimistic",
}
CROPS = {"": "the recipe's crop", "-squash": "squashed whole"}  # how images reach the network: in words


@dataclass
class RunResult:
    """What a run found.

    Attributes:
        record: What run.json says.
        history: Its summary.csv and its arguments.
        seconds: Seconds of each epoch, of those for which it is known.
        kept: Accuracy on the evaluated images of each checkpoint that train.py kept, by epoch.
        predictions: Predictions by the name of their file: a choice of weights, with a crop behind it.
    """

    record: Record
    history: History
    seconds: dict[int, float]
    kept: dict[int, float]
    predictions: dict[str, Predictions]

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median over the epochs; None where it is not known."""
        return statistics.median(self.seconds.values()) if self.seconds else None

    @property
    def hours(self) -> float | None:
        """Of the whole training; None where the seconds of some epochs are not known, or some were trained twice."""
        epochs = [int(row["epoch"]) for row in self.history.rows()]
        if epochs != sorted(self.seconds):
            return None
        # where only every few epochs are validated, the time of one stands for those since the line before
        nums = [epoch - before for before, epoch in zip([-1, *epochs], epochs, strict=False)]
        return sum(num * self.seconds[epoch] for num, epoch in zip(nums, epochs, strict=True)) / 3600

    @property
    def trained_by_hand(self) -> bool:
        """Whether some of its epochs were trained by hand, under conditions that nothing records."""
        return min((session["first_epoch"] for session in self.record.sessions), default=1) > 0


@dataclass
class StudyResult:
    """What a study found.

    Attributes:
        name: Name of its folder, or its path in the folder of several studies.
        study: What its runs have in common.
        runs: Its finished runs by network, in the study's order, each by seed.
    """

    name: str
    study: Study
    runs: dict[str, list[RunResult]]

    def predictions(self, model: str, choice: str) -> list[Predictions]:
        """Predictions of a network, one for each seed; none where the choice was not evaluated."""
        return [run.predictions[choice] for run in self.runs[model] if choice in run.predictions]


def load_run(folder: Path) -> RunResult | None:
    """What the run in a folder found; None where it is not at its end.

    Raises:
        ValueError: If its files are not as `python -m benchmarks accuracy` writes them.
        OSError: If one is missing.
    """
    record = load_record(folder)
    if record is None:
        return None
    names = [f"{choice}{crop}" for choice in CHOICES for crop in CROPS]
    with (folder / "checkpoints.csv").open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    return RunResult(
        record,
        History(folder),
        read_seconds(folder / "epochs.csv"),
        {int(epoch): float(accuracy) for epoch, _, accuracy in rows},
        {name: read_predictions(folder / f"{name}.csv") for name in names if (folder / f"{name}.csv").exists()},
    )


def load_result(folder: Path, name: str = "") -> StudyResult:
    """What the study in a folder found.

    Args:
        folder: The folder.
        name: What it is called beside other studies; by default the folder's own name.

    Raises:
        ValueError: If it is no study, or holds no finished run, or its runs are of different images.
        OSError: If a file is missing.
    """
    study = load_study(folder)
    found = [run for path in sorted(folder.iterdir()) if path.is_dir() and (run := load_run(path)) is not None]
    if not found:
        raise ValueError(f"from: {folder} holds no finished run")
    tables = [(run, choice) for run in found for choice in run.predictions]
    files = [f"{run.record.run.name}/{choice}.csv" for run, choice in tables]
    aligned = align([run.predictions[choice] for run, choice in tables], files)
    for (run, choice), predictions in zip(tables, aligned, strict=True):
        run.predictions[choice] = predictions
    runs = {
        model: sorted((run for run in found if run.record.model == model), key=lambda run: run.record.seed)
        for model in study.models
    }
    return StudyResult(name or folder.name, study, {model: of_model for model, of_model in runs.items() if of_model})


def load_results(folder: Path) -> list[StudyResult]:
    """What the study in a folder found, or all studies in it, which then have their paths in it as names."""
    return [load_result(each, each.relative_to(folder).as_posix().strip(".")) for each in find_studies(folder)]


def find_studies(folder: Path) -> list[Path]:
    """The folders of studies in a folder: itself, and all that lie in it.

    Raises:
        ValueError: If there is none.
    """
    folders = sorted(path.parent for path in folder.rglob("study.json"))
    if not folders:
        raise ValueError(f"from: {folder} holds no study of python -m benchmarks accuracy")
    return folders
