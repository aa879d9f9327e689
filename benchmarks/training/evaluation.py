"""The evaluation of what train.py left, by the code of `python -m hifuse_timm evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .runner import TrainingError

if TYPE_CHECKING:
    from hifuse_timm.evaluate import Evaluation


def evaluate_checkpoint(model: str, data_dir: str, checkpoint: Path, **options) -> Evaluation:
    """Evaluate a network after one of the epochs of its training.

    Args:
        model: Name of the network in timm.
        data_dir: Prepared dataset.
        checkpoint: What train.py saved; it holds the arguments of the network.
        options: Others of `hifuse_timm.evaluate.evaluate`.

    Raises:
        TrainingError: If it cannot be evaluated.
    """
    from hifuse_timm.evaluate import evaluate

    try:
        return evaluate(model, data_dir, checkpoint, **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise TrainingError(f"{checkpoint} cannot be evaluated: {error}") from error
