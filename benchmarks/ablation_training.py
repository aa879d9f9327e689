"""Training of the networks of Table 3 with timm's train.py, one after the other, and their evaluation."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from tqdm import tqdm

from hifuse_timm.files import write_json

from .measure.environment import format_conditions
from .networks.table3 import CONFIGURATIONS, Configuration, find_configuration
from .tables import format_table

METRICS = ("accuracy", "f1", "precision", "recall")
_POLL_SECONDS = 1.0


@dataclass
class Settings:
    """How the networks are trained and evaluated; all of it is in the result, so that the training can go on.

    Attributes:
        data_dir: Prepared dataset, `train/CLASS/*` and `val/CLASS/*`, or `test/CLASS/*` as well.
        num_classes: Number of its classes.
        split: Split that the networks are evaluated on.
        recipe: Settings of timm's train.py, as the recipe file has them.
        model_kwargs: Arguments of the networks beside those of their rows, NAME=VALUE.
    """

    data_dir: str
    num_classes: int
    split: str
    recipe: dict
    model_kwargs: list[str]

    @classmethod
    def read(cls, data_dir: str, recipe: str, split: str | None, model_kwargs: list[str]) -> Settings:
        """Settings from the command line.

        Raises:
            ValueError: If the dataset or the recipe cannot be used.
        """
        root = Path(data_dir)
        for folder in ("train", "val"):
            if not (root / folder).is_dir():
                raise ValueError(f"data-dir: {data_dir} has no folder {folder}, expected train/CLASS/* and val/CLASS/*")
        split = split or ("test" if (root / "test").is_dir() else "val")
        if not (root / split).is_dir():
            raise ValueError(f"split: {data_dir} has no folder {split}")
        try:
            content = yaml.safe_load(Path(recipe).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"recipe: {recipe} cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"recipe: {recipe} holds no settings, expected NAME: VALUE lines of timm's train.py")
        num_classes = sum(path.is_dir() for path in (root / "train").iterdir())
        return cls(data_dir, num_classes, split, content, list(model_kwargs))


@dataclass
class Row:
    """Training of one network.

    Attributes:
        slug: Which row of Table 3 it is.
        seconds: Time that its training took.
        epochs: Epochs that it was trained for; None as long as the training is not at its end.
        best_epoch: The epoch that was best on the validation split, counted from 1, whose weights are evaluated.
        metrics: Metrics on the split of the settings, as fractions; None as long as there are none.
        accuracy_interval: 95% interval of the accuracy, of a bootstrap over the images.
        images: Number of images of the split.
    """

    slug: str
    seconds: float = 0.0
    epochs: int | None = None
    best_epoch: int | None = None
    metrics: dict[str, float] | None = None
    accuracy_interval: list[float] | None = None
    images: int | None = None


@dataclass
class Result:
    """Training of all networks, finished or not.

    Attributes:
        conditions: Those of each session that trained.
    """

    settings: Settings
    conditions: list[dict] = field(default_factory=list)
    rows: list[Row] = field(default_factory=lambda: [Row(row.slug) for row in CONFIGURATIONS])

    def to_json(self) -> dict:
        return dict(kind="ablation-training", **asdict(self))

    @classmethod
    def from_json(cls, data: dict) -> Result:
        return cls(Settings(**data["settings"]), data["conditions"], [Row(**row) for row in data["rows"]])


def load_result(out: Path, settings: Settings) -> Result:
    """What a folder holds of a training with these settings, or a new result.

    Raises:
        ValueError: If it holds one with other settings, or something else.
    """
    path = out / "ablation.json"
    if not path.exists():
        return Result(settings)
    try:
        result = Result.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out: {path} is no result of this command ({error}); give another folder") from error
    then, now = asdict(result.settings), asdict(settings)
    changed = [f"{name} was {then[name]} and is {now[name]}" for name in now if then[name] != now[name]]
    if changed:
        raise ValueError(f"out: {out} holds networks that were trained otherwise: {'; '.join(changed)}; give another")
    return result


@dataclass
class Commands:
    """The commands that train and evaluate the networks.

    Attributes:
        settings: How.
        recipe: Path of the recipe.
        out: Folder with a folder for each network.
        script: Path of timm's train.py.
        device: Name of the device; None for what train.py takes by itself.
    """

    settings: Settings
    recipe: str
    out: str
    script: str = "train.py"
    device: str | None = None

    def train(self, row: Configuration) -> list[str]:
        """Train one network."""
        arguments = [*row.arguments, *self.settings.model_kwargs]
        return [
            *("python", self.script, "--device-modules", "hifuse_timm", "--config", self.recipe),
            *("--model", "hifuse_tiny"),
            *(["--model-kwargs", *arguments] if arguments else []),
            *("--data-dir", self.settings.data_dir, "--num-classes", str(self.settings.num_classes)),
            *(["--device", self.device] if self.device else []),
            *("--output", self.out, "--experiment", row.slug),
        ]

    def evaluate(self, row: Configuration) -> list[str]:
        """Evaluate one network after its training."""
        return [
            *("python", "-m", "hifuse_timm", "evaluate", "--model", "hifuse_tiny"),
            *("--checkpoint", f"{self.out}/{row.slug}/model_best.pth.tar"),
            *(["--use-ema"] if self.settings.recipe.get("model_ema") else []),
            *("--data-dir", self.settings.data_dir, "--split", self.settings.split),
            *(["--device", self.device] if self.device else []),
        ]

    def __str__(self) -> str:
        lines = []
        for row in CONFIGURATIONS:
            lines += [f"# {row.name}", shlex.join(self.train(row)), shlex.join(self.evaluate(row)), ""]
        return "\n".join(lines)


@dataclass
class History:
    """What train.py has written about a training, in its folder."""

    folder: Path

    def settings(self) -> dict:
        return yaml.safe_load((self.folder / "args.yaml").read_text())

    def epochs(self) -> dict[int, float]:
        """Metric after each epoch, counted from 0; of an epoch that was trained twice, the second."""
        path = self.folder / "summary.csv"
        if not path.exists():
            return {}
        column = "eval_" + self.settings()["eval_metric"]
        with path.open(newline="") as lines:
            # a resumed training writes the header once more
            return {int(row["epoch"]): float(row[column]) for row in csv.DictReader(lines) if row["epoch"] != "epoch"}

    def is_complete(self) -> bool:
        """Whether the last epoch has been trained."""
        epochs = self.epochs()
        return bool(epochs) and max(epochs) + 1 >= self.settings()["epochs"]

    def best_epoch(self) -> int:
        """The epoch, counted from 0, whose metric is best.

        train.py's own model_best.pth.tar forgets the epochs before a resumption.
        """
        epochs = self.epochs()
        return (min if self.settings()["eval_metric"] == "loss" else max)(epochs, key=epochs.get)


class TrainingError(Exception):
    """A training or an evaluation did not come to its end."""


def train(command: list[str], history: History, progress: tqdm) -> None:
    """Run train.py to its end, from its last epoch on where it has been interrupted; its output goes into train.log.

    Raises:
        TrainingError: If it ends before its last epoch.
    """
    history.folder.mkdir(exist_ok=True)
    if (last := history.folder / "last.pth.tar").exists():
        command = [*command, "--resume", str(last)]
    root = str(Path(__file__).parents[1])  # with a clone that is not installed, train.py finds hifuse_timm here
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    log = history.folder / "train.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *command[1:]], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                progress.update(len(history.epochs()) - progress.n)
        finally:
            process.terminate()
            process.wait()
    epochs = len(history.epochs())
    progress.update(epochs - progress.n)
    if process.returncode or not history.is_complete():  # train.py ends with 0 when it is interrupted
        lines = log.read_text().strip().splitlines() or ["no output"]
        raise TrainingError(
            f"train.py ended with exit status {process.returncode} after {epochs} epochs; the end of {log} is: "
            + lines[-1]
        )


def evaluate(settings: Settings, checkpoint: Path, use_ema: bool, device: str) -> dict:
    """Metrics of a trained network, by the code of `python -m hifuse_timm evaluate`.

    The checkpoint of train.py holds the arguments of its network.
    """
    from hifuse_timm.evaluate import evaluate

    return evaluate(
        "hifuse_tiny",
        settings.data_dir,
        checkpoint,
        split=settings.split,
        use_ema=use_ema,
        device=device,
        workers=settings.recipe.get("workers", 4),
    ).result


def run(result: Result, commands: Commands) -> None:
    """Train and evaluate what a result lacks, one network after the other, and keep it in `ablation.json`.

    Args:
        result: Where metrics go.
        commands: How the networks are trained; they name the device.

    Raises:
        TrainingError: If a network cannot be trained or evaluated; what was done before is kept.
        ValueError: If there is something to train and no train.py.
    """
    out = Path(commands.out)
    histories = {row.slug: History(out / row.slug) for row in result.rows}
    missing = [slug for slug, history in histories.items() if not history.is_complete()]
    if missing and not Path(commands.script).is_file():
        raise ValueError(
            f"train-script: {commands.script} is no file, expected timm's train.py, to train {', '.join(missing)}"
        )

    def save() -> None:
        write_json(out / "ablation.json", result.to_json())

    out.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(result.rows, start=1):
        if row.metrics is None:
            history, what = histories[row.slug], f"{number}/{len(result.rows)} {row.slug}"
            epochs = result.settings.recipe.get("epochs")
            with tqdm(total=epochs, initial=len(history.epochs()), unit="epoch", desc=what, disable=None) as progress:
                try:
                    train_row(row, commands, history, progress)
                finally:
                    save()
                progress.set_description(f"{what}, evaluated")
                evaluate_row(row, commands, history)
                save()


def train_row(row: Row, commands: Commands, history: History, progress: tqdm) -> None:
    """Train what a network lacks, and add the time to its row."""
    if history.is_complete():
        return
    start = time.monotonic()
    try:
        train(commands.train(find_configuration(row.slug)), history, progress)
    finally:
        row.seconds += time.monotonic() - start


def evaluate_row(row: Row, commands: Commands, history: History) -> None:
    """Evaluate a network after its best epoch, and put its metrics into its row."""
    best = history.best_epoch()
    checkpoint = history.folder / f"checkpoint-{best}.pth.tar"
    try:
        metrics = evaluate(commands.settings, checkpoint, bool(history.settings()["model_ema"]), commands.device)
    except (ValueError, OSError, RuntimeError) as error:
        raise TrainingError(f"{checkpoint} cannot be evaluated: {error}") from error
    row.epochs, row.best_epoch = len(history.epochs()), best + 1
    row.metrics = {name: metrics[name] for name in METRICS}
    row.accuracy_interval, row.images = metrics["intervals"]["accuracy"], metrics["counts"]["images"]


def format_result(result: Result, markdown: bool = False) -> str:
    """A table of the metrics beside the paper's, and the conditions."""
    settings = result.settings
    names = dict(accuracy="Acc%", f1="F1%", precision="Prec%", recall="Recall%")
    header = ["Table 3", *names.values(), "95% interval of Acc%", *(f"{name} in the paper" for name in names.values())]
    header += ["Best epoch", "Time (min)"]
    cells = []
    for row in result.rows:
        published = find_configuration(row.slug)
        cells.append(
            [
                published.name,
                *("" if row.metrics is None else f"{100 * row.metrics[name]:.2f}" for name in METRICS),
                " to ".join(f"{100 * bound:.2f}" for bound in row.accuracy_interval or ()),
                *(f"{getattr(published, name):.2f}" for name in METRICS),
                "" if row.best_epoch is None else f"{row.best_epoch} of {row.epochs}",
                f"{row.seconds / 60:.1f}" if row.seconds else "",
            ]
        )
    extra = f" with {' '.join(settings.model_kwargs)}" if settings.model_kwargs else ""
    images = next((f", {row.images:,} images" for row in result.rows if row.images), "")
    choice = ", on which the best epoch was chosen too" if settings.split == "val" else ""
    recipe = ", ".join(f"{name} {value}" for name, value in settings.recipe.items())
    text = [
        format_table(header, cells, markdown),
        "",
        f"hifuse_tiny{extra}, trained on {settings.data_dir} and evaluated on its {settings.split} split{images}"
        f"{choice}; {settings.num_classes} classes. The paper's metrics are of ISIC2018. F1, precision and recall are "
        f"means over the classes. Recipe: {recipe}.",
    ]
    text += [line for session in result.conditions for line in ("", format_conditions(session))]
    return "\n".join(text)
