"""A batch, or its positions, a few at a time on a CPU; checkpointing that counts statistics once."""

from contextlib import contextmanager

from torch import nn

__all__ = ["STAGE_PIECE_BYTES", "frozen_statistics"]

# a map of a piece of a batch: two images of 224x224 in the first stage, four in the second
STAGE_PIECE_BYTES = 2560 * 2**10


@contextmanager
def frozen_statistics(module: nn.Module):
    """Keep the BatchNorms of the module from counting a batch: their statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
