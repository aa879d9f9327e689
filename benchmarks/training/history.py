"""What train.py leaves of a training in its folder, and how long its epochs took."""

from __future__ import annotations

import csv
import re
import time
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass
class History:
    """What train.py has written about a training, in its folder, and beside it the seconds of its epochs.

    Attributes:
        folder: The folder. Whoever trained, `epochs.csv` in it, of the columns epoch and seconds, is taken for how long
            each epoch took.
    """

    folder: Path

    def settings(self) -> dict:
        """All arguments of train.py."""
        return yaml.safe_load((self.folder / "args.yaml").read_text(encoding="utf-8"))

    def rows(self) -> list[dict[str, str]]:
        """The lines of summary.csv, one for each epoch that was validated, in the order in which they were written."""
        path = self.folder / "summary.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as lines:
            # a resumed training may write the header once more; a line that is being written is not whole yet
            return [row for row in csv.DictReader(lines) if row["epoch"] != "epoch" and None not in row.values()]

    def epochs(self) -> dict[int, float]:
        """Metric after each epoch, counted from 0; of an epoch that was trained twice, the second."""
        rows = self.rows()
        column = f"eval_{self.settings()['eval_metric']}" if rows else ""
        return {int(row["epoch"]): float(row[column]) for row in rows}

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

    def checkpoint(self, epoch: int) -> Path:
        """The file of an epoch, whether train.py has kept it or not."""
        return self.folder / f"checkpoint-{epoch}.pth.tar"

    def last_checkpoint(self) -> Path:
        """The file of the last epoch."""
        return self.folder / "last.pth.tar"

    def kept_checkpoints(self) -> dict[int, Path]:
        """The files of the epochs that train.py has kept, the best ones and the last, by epoch."""
        names = (re.fullmatch(r"checkpoint-(\d+)\.pth\.tar", path.name) for path in self.folder.iterdir())
        epochs = {int(name[1]) for name in names if name} & set(self.epochs())
        kept = {epoch: self.checkpoint(epoch) for epoch in epochs}
        return dict(sorted((kept | {max(self.epochs()): self.last_checkpoint()}).items()))

    def seconds(self) -> dict[int, float]:
        """Seconds that each epoch took, of those for which it is known."""
        return read_seconds(self.folder / "epochs.csv")


def read_seconds(path: Path) -> dict[int, float]:
    """Seconds of each epoch in an `epochs.csv`; none where there is no such file.

    Raises:
        ValueError: If it is none.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return {int(row["epoch"]): float(row["seconds"]) for row in csv.DictReader(lines)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as expected ({error}): expected the columns epoch, seconds") from error


class EpochClock:
    """Writes `epochs.csv` while train.py writes `summary.csv`.

    The first epoch after a start takes the start-up of train.py with it. Where only every few epochs are validated,
    each gets the mean of those since the line before.
    """

    def __init__(self, history: History):
        """Start the time of the next epoch."""
        self.history = history
        self.rows = history.rows()
        self.start = time.monotonic()

    def update(self) -> None:
        """Add the epochs that have ended since the last call."""
        rows = self.history.rows()
        epochs = [int(row["epoch"]) for row in rows]
        num_new = len(rows) - len(self.rows)  # fewer than none where train.py drops what it will train again
        self.rows = rows
        if num_new <= 0:
            return
        before = epochs[-num_new - 1] if len(epochs) > num_new else -1
        now = time.monotonic()
        seconds = (now - self.start) / max(1, epochs[-1] - before)
        self.start = now
        path = self.history.folder / "epochs.csv"
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write("epoch,seconds\n" * is_new)
            file.writelines(f"{epoch},{seconds:.2f}\n" for epoch in epochs[-num_new:])
