"""Runs of train.py, each to its end, from its last epoch on where it has been interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from .history import EpochClock, History

POLL_SECONDS = 1.0


class TrainingError(Exception):
    """A training or an evaluation did not come to its end."""


def train(command: list[str], history: History, progress: tqdm) -> None:
    """Run train.py to its end, from its last epoch on where it has been interrupted; its output goes into train.log.

    Raises:
        TrainingError: If it ends before its last epoch.
    """
    history.folder.mkdir(parents=True, exist_ok=True)
    if (last := history.last_checkpoint()).exists():
        command = [*command, "--resume", str(last)]
    root = str(Path(__file__).parents[2])  # with a clone that is not installed, train.py finds hifuse_timm here
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    log = history.folder / "train.log"
    clock = EpochClock(history)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *command[1:]], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                clock.update()
                progress.update(len(history.epochs()) - progress.n)
        finally:
            process.terminate()
            process.wait()
    clock.update()
    epochs = len(history.epochs())
    progress.update(epochs - progress.n)
    if process.returncode or not history.is_complete():  # train.py ends with 0 when it is interrupted
        lines = log.read_text().strip().splitlines() or ["no output"]
        raise TrainingError(
            f"train.py ended with exit status {process.returncode} after {epochs} epochs; the end of {log} is: "
            + lines[-1]
        )
