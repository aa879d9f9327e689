"""Image files through trained networks: one way for all that makes probabilities of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from timm.utils import reparameterize_model
from torch.utils.data import DataLoader, Dataset

from .calibration import Calibration, read_calibration
from .checkpoint import checksum_weights
from .errors import shorten
from .exported import is_exported
from .images import open_image
from .loading import PRECISIONS, Trained

__all__ = ["Predicted", "batched", "check_options", "fold", "load_calibration", "predict_files"]

_FLIPS = ((), (-1,), (-2,), (-2, -1))  # dimensions of an image as it is, mirrored, upside down, and both


class Predicted(NamedTuple):
    """What networks make of a batch of image files.

    Attributes:
        files: The files.
        probs: Probability of each class for each file, (N, K), float64; of no meaning where there is a fault.
        faults: Why a file cannot be read as an image, None where it can.
    """

    files: list[str]
    probs: torch.Tensor
    faults: list[str | None]


def load_calibration(path: str | Path, network: Trained) -> Calibration:
    """Read what `calibrate` wrote for a network, matched to it.

    Raises:
        ValueError: If it is anything else, or of another network, or nothing names the network's classes.
        OSError: If it cannot be read.
    """
    if network.class_names is None:
        raise ValueError(f"nothing names the classes of {network.name}, which a calibration needs: give --class-map")
    weights = checksum_weights(network.model.state_dict())
    return read_calibration(path).matched_to(network.class_names, [weights], [network.data_config])


def check_options(
    precision: str, batch_size: int, workers: int | None, checkpoints: Sequence[str | Path | None] = ()
) -> int:
    """Check how images are to be run through networks, of these checkpoints, before long work.

    Returns:
        The number of processes that read images: by default one a core, at most 4.

    Raises:
        ValueError: If an argument is not valid.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not known: expected one of {', '.join(PRECISIONS)}")
    if precision != "float32" and (exported := [str(path) for path in checkpoints if is_exported(path)]):
        raise ValueError(f"precision {precision} cannot be chosen for {shorten(exported)}, which export fixed it in")
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(4, cores)
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} {value} is too small: expected {least} or more")
    return workers


def fold(trained: Trained) -> None:
    """Fold a network for inference, in place, which leaves its outputs as they are but for rounding.

    Raises:
        ValueError: If it has nothing to fold.
    """
    modules = list(trained.model.modules())
    if not any(hasattr(m, f) for m in modules for f in ("fuse", "reparameterize", "switch_to_deploy")):
        raise ValueError(f"fuse: {trained.name} has nothing to fold for inference")
    reparameterize_model(trained.model, inplace=True)


def batched(files: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Files in batches, of which the last may be smaller."""
    files = iter(files)
    while batch := list(islice(files, batch_size)):
        yield batch


def predict_files(
    batches: Iterable[list[str]],
    networks: Sequence[Trained],
    *,
    device: torch.device,
    precision: str = "float32",
    workers: int = 0,
    flips: bool = False,
) -> Iterator[Predicted]:
    """Run image files through a network, or several of the same classes, whose probabilities are averaged.

    Args:
        batches: Files that go through the networks at once. They are taken as they are needed, a few ahead.
        networks: Networks on the device, each with its own transform.
        device: Where they are.
        precision: One of `PRECISIONS`; of the lower ones, autocast decides what is computed in them.
        workers: Processes that read images, 0 to read them in this one.
        flips: Whether to average over the image as it is, mirrored, upside down, and both.

    Raises:
        ValueError: If the outputs of a network are not finite.
    """
    loader = DataLoader(
        _ImageFiles(networks),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    for files, inputs, faults in loader:
        inputs = {key: images.to(device, non_blocking=True) for key, images in inputs.items()}
        views = _FLIPS if flips else _FLIPS[:1]
        probs = [_infer(n, inputs[_key(n)].flip(dims), precision) for n in networks for dims in views]
        yield Predicted(files, torch.stack(probs).mean(0), faults)


@torch.inference_mode()
def _infer(network: Trained, images: torch.Tensor, precision: str) -> torch.Tensor:
    dtype = PRECISIONS[precision]
    with (
        nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        logits = network.model(images)
    if not logits.isfinite().all():
        advice = "" if dtype == torch.float32 else "; try precision float32"
        raise ValueError(f"the network's outputs are not finite{advice}")
    return logits.cpu().double().softmax(1)


class _ImageFiles(Dataset):
    """Image files, asked for by their paths, as networks take them.

    timm's own dataset takes the next image in the place of one that it cannot read.
    """

    def __init__(self, networks: Sequence[Trained]):
        self.transforms = {_key(network): network.transform for network in networks}

    def __getitem__(self, file: str) -> tuple[str, dict, str | None]:
        inputs, fault = {}, None
        for key, transform in self.transforms.items():
            mode, _ = key
            try:
                image = open_image(file, mode)
            except (ValueError, OSError, RuntimeError) as e:
                image, fault = Image.new(mode, (1, 1)), str(e)
            inputs[key] = transform(image)
        return file, inputs, fault


def _key(network: Trained) -> tuple[str, str]:
    """What networks have in common that take an image in the same way, as those of the folds of one training."""
    return network.image_mode, repr(network.data_config)


def _collate(items: list[tuple]) -> tuple[list[str], dict, list[str | None]]:
    files, inputs, faults = zip(*items, strict=True)
    return list(files), {key: torch.stack([i[key] for i in inputs]) for key in inputs[0]}, list(faults)
