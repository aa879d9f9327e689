"""The best of several checkpoints of one training, by a metric."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runs import METRICS
from .evaluation import Evaluation, evaluate

__all__ = ["pick_best"]


def pick_best(
    model: str,
    data_dir: str | Path,
    checkpoints: Sequence[str | Path],
    metric: str,
    *,
    split: str = "val",
    **options,
) -> Evaluation:
    """Evaluate several checkpoints of one training, and pick the best of them.

    Args:
        model: Name of a model in timm.
        data_dir: Folder with `SPLIT/CLASS/*` images, as `prepare` writes it.
        checkpoints: What timm's train.py saved, two files or more.
        metric: One of `METRICS`: the greatest is the best, of `ece` and `brier` the least; of equal ones the
            first.
        split: Folder in `data_dir` to pick on. Not test: what is picked on it is measured too well there.
        **options: Others of `evaluate`.

    Returns:
        The evaluation of the best. `selection` in its result has the metric, and of each checkpoint its file, its value
        and the interval of that.

    Raises:
        ValueError: If an argument is not valid, the metric is not defined on the split, or `evaluate` refuses one.
        OSError: If a folder or a file is missing.
        RuntimeError: If a library is missing.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is not known: expected one of {', '.join(METRICS)}")
    if options.get("calibration") is not None:
        raise ValueError(f"calibration is of one checkpoint, and metric {metric} picks the best of several: pick first")
    if len(checkpoints) < 2:
        raise ValueError(f"metric {metric} picks the best of several checkpoints: {len(checkpoints)} given")
    if split == "test":
        raise ValueError("split test would measure the checkpoint that is best on it: pick on val, then evaluate it")
    for checkpoint in checkpoints:  # before long work
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"checkpoint {checkpoint} does not exist or is not a file")
    sign = -1 if metric in ("ece", "brier") else 1
    best, found = None, []
    for checkpoint in checkpoints:
        evaluation = evaluate(model, data_dir, checkpoint, split=split, **options)
        value = evaluation.result[metric]
        if value is None:
            raise ValueError(f"metric {metric} is not defined on {split}, which has images of one class alone")
        found.append(dict(checkpoint=str(checkpoint), value=value, interval=evaluation.result["intervals"][metric]))
        if best is None or sign * value > sign * best.result[metric]:
            best = evaluation
    return replace(best, result=best.result | dict(selection=dict(metric=metric, checkpoints=found)))
