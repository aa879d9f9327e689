"""Processes that torchrun started, or this one alone: who takes part, what one hands to the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ..loading import find_device

__all__ = ["broadcast", "gather", "joined", "take_device"]


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """Joins the processes that torchrun started; gives this one's rank and their number."""
    if not dist.is_torchelastic_launched():
        yield 0, 1
        return
    dist.init_process_group("gloo")  # by which rows are handed on, whatever the device
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def broadcast(value: Any) -> Any:
    """The value of the first process."""
    values = [value]
    if dist.is_initialized():
        with _ending_with_the_first():
            dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(rows: list[list[str]]) -> list[list[list[str]]]:
    """The rows of all processes in their order, in the first one; none in the others."""
    if not dist.is_initialized():
        return [rows]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    with _ending_with_the_first():
        dist.gather_object(rows, gathered)
    return gathered or []


@contextmanager
def _ending_with_the_first() -> Iterator[None]:
    """Ends this process without a word where the first one, which says why, has ended."""
    try:
        yield
    except RuntimeError:  # gloo's, of a lost connection
        if dist.get_rank() == 0:
            raise
        raise SystemExit(1) from None


def take_device(name: str | None) -> torch.device:
    """The device of this name; under torchrun, where the name has no number, the one of its kind for this process."""
    device = find_device(name)
    if dist.is_torchelastic_launched() and device.type != "cpu" and device.index is None:
        return find_device(f"{device.type}:{os.environ['LOCAL_RANK']}")
    return device
