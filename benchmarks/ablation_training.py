"""Training of the networks of Table 3 with timm's train.py, one after the other, and their evaluation."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from hifuse_timm.files import write_json

from .measure.environment import format_conditions
from .networks.table3 import CONFIGURATIONS, Configuration, find_configuration
from .tables import format_table
from .training.evaluation import evaluate_checkpoint
from .training.history import History
from .training.runner import train
from .training.settings import check_script, count_classes, find_split, read_recipe, train_command

METRICS = ("accuracy", "f1", "precision", "recall")


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
        split = find_split(data_dir, split)
        return cls(data_dir, count_classes(data_dir), split, read_recipe(recipe), list(model_kwargs))


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
        return train_command(
            self.script,
            recipe=self.recipe,
            model="hifuse_tiny",
            model_kwargs=[*row.arguments, *self.settings.model_kwargs],
            data_dir=self.settings.data_dir,
            num_classes=self.settings.num_classes,
            output=self.out,
            experiment=row.slug,
            device=self.device,
        )

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


def evaluate(settings: Settings, checkpoint: Path, use_ema: bool, device: str) -> dict:
    """Metrics of a trained network, whose checkpoint holds the arguments of its row."""
    return evaluate_checkpoint(
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
    if missing:
        check_script(commands.script, ", ".join(missing))

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
    use_ema = bool(history.settings()["model_ema"])
    metrics = evaluate(commands.settings, history.checkpoint(best), use_ema, commands.device)
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
