"""What runs will cost: epochs by seconds, of epochs that were trained before or of a few steps that are measured."""

from __future__ import annotations

import statistics
import time

import torch

from ..measure.config import PRECISIONS
from ..measure.runner import NetworkRunner, prepare_device
from ..training.history import read_seconds
from .recording import Recorder, build_network
from .run import Run

_STEPS = 3


def format_cost(recorder: Recorder, runs: list[Run]) -> str:
    """A line for each network that has something left to train, and their sum."""
    lines, total = [], 0.0
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        epochs = sum(recorder.epochs_left(run) for run in of_model)
        if epochs:
            seconds, how = _seconds_per_epoch(recorder, of_model[0])
            total += epochs * seconds
            lines.append(f"{model}: {epochs} epochs x {how} = {format_hours(epochs * seconds)}")
    lines.append(f"In all {format_hours(total)}, and the evaluation of each run's checkpoints.")
    return "\n".join(lines)


def format_hours(seconds: float) -> str:
    """A time in hours, or in minutes where that is less than one."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _seconds_per_epoch(recorder: Recorder, run: Run) -> tuple[float, str]:
    """Seconds of an epoch, and in words how they are known."""
    name = run.name.removesuffix(f"seed{run.seed}")
    roots = (recorder.checkpoints, recorder.out)
    files = {path.parent.name: path for root in roots for path in root.glob(f"{name}seed*/epochs.csv")}
    known = [seconds for path in files.values() for seconds in read_seconds(path).values()]
    if known:
        seconds = statistics.median(known)
        return seconds, f"{seconds:.1f} s, the median of {len(known)} epochs that were trained before"
    images = recorder.study.dataset["counts"]["train"]
    seconds, batch_size = measure_image(recorder, run)
    how = f"{images:,} images x {seconds:.4f} s, measured here in {_STEPS} steps of {batch_size} images"
    return images * seconds, f"{how} without reading and validation"


def measure_image(recorder: Recorder, run: Run) -> tuple[float, int]:
    """Seconds that an image takes in a step of training, on random images, and the batch size."""
    settings = recorder.study.settings
    precision = settings.get("amp_dtype", "float16") if settings.get("amp") else "float32"
    batch_size = settings.get("batch_size", 128)
    device = torch.device(recorder.device)
    prepare_device(device)
    runner = NetworkRunner(
        build_network(run, recorder.study, on_meta=False),
        batch_size,
        recorder.study.img_size,
        recorder.study.num_classes,
        recorder.device,
        PRECISIONS[precision].dtype,
        training=True,
    )
    runner.step()  # warms up
    seconds = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        runner.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / batch_size, batch_size
