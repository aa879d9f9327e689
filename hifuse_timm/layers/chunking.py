"""A batch a few images at a time on a CPU; checkpointing that counts the statistics of a batch once."""

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import onednn

__all__ = ["checkpoint_module", "count_chunks", "run_in_chunks"]

# a map of the images of a chunk: two of 224x224 in HiFuse's first stage, four in the second
_MAP_BYTES = 2560 * 2**10


def count_chunks(module: nn.Module, x: torch.Tensor, width: float, halve: bool = False) -> int:
    """Number of chunks of a batch that a module takes one after the other on a CPU, where that is faster.

    New memory costs a CPU page faults, a fifth of the time of a batch (benchmarks/README.md), and small maps find
    theirs in what was freed before.

    Args:
        module: The module.
        x: A map that it takes, (B, C, H, W).
        width: Values of one of its own maps for each of the H*W tokens of x.
        halve: Whether a compiled module takes a batch of 4 images or more in two halves. The compiler compiles each
            chunk, and one of a single image would be compiled for that size alone.

    Returns:
        1 for the whole batch at once: also with gradients, which keep all maps, and where a hook waits for the maps of
        the whole batch, or a BatchNorm in training for its statistics.
    """
    if torch.is_grad_enabled():
        return 1
    num_chunks = 1
    if onednn.serves_eagerly(x):
        map_bytes = width * x.shape[2] * x.shape[3] * onednn.product_dtype(x).itemsize
        num_chunks = math.ceil(x.shape[0] / max(_MAP_BYTES // map_bytes, 1))
    elif onednn.serves_compiled(x) and halve and x.shape[0] > 3:
        num_chunks = 2
    return num_chunks if num_chunks > 1 and _treats_images_apart(module) else 1


def _treats_images_apart(module: nn.Module) -> bool:
    """Whether no image has an effect on another, as in a BatchNorm in training, and no hook waits for a map."""
    return not any(
        onednn.has_hooks(m) or (isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training) for m in module.modules()
    )


def run_in_chunks(
    function: Callable[..., tuple[torch.Tensor | None, ...]], num_chunks: int, *maps: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """Call a function of maps, (B, ...) or None each, a few images at a time; it gives such maps too."""
    chunked = [[None] * num_chunks if x is None else x.chunk(num_chunks) for x in maps]
    results = [function(*chunk) for chunk in zip(*chunked, strict=False)]  # chunk() may give fewer than asked for
    return tuple(None if chunks[0] is None else torch.cat(chunks) for chunks in zip(*results, strict=True))


def checkpoint_module(module: nn.Module, *maps: torch.Tensor | None) -> torch.Tensor:
    """Call a module, which the backward pass then runs a second time instead of keeping what it computed."""
    if torch.compiler.is_compiling():  # which takes no context functions
        return checkpoint(module, *maps, use_reentrant=False)

    def contexts():
        # the running statistics have already counted this batch when the backward pass runs the module again
        return nullcontext(), _frozen_statistics(module)

    return checkpoint(module, *maps, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(module: nn.Module):
    """Keep the BatchNorms of the module from counting a batch: their statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
