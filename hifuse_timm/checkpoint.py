"""Files of weights: read safely, unwrap, save."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path

import safetensors.torch
import torch

from .errors import shorten
from .files import replacing_file

__all__ = ["check_output", "read_checkpoint", "read_training_args", "save_weights", "unwrap_state_dict"]

# Where a checkpoint keeps its weights: timm's train.py under state_dict, the authors' training code under net.
_WRAPPERS = ("state_dict", "model", "net")

_EMA_WRAPPERS = ("state_dict_ema", "model_ema")

# What DistributedDataParallel and torch.compile put before every key.
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path, use_ema: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint file, in whatever layout they are.

    Reads safetensors, and pickles with nothing in them but tensors, plain Python values and the argparse.Namespace
    of timm's train.py; unwraps `state_dict`, `model` and `net`, and takes `module.` and `_orig_mod.` off the keys.

    Args:
        path: The file; safetensors by its ending, otherwise a pickle made by torch.save.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, needs any other pickled global, holds no weights, no averaged weights
            where they are asked for, or something that is no tensor among its weights.
    """
    try:
        return unwrap_state_dict(_read(path), use_ema=use_ema)
    except _LayoutError as e:
        raise ValueError(f"checkpoint {path}: {e}") from None


class _LayoutError(ValueError):
    """The content of a checkpoint is not what it should be; says so without the name of the file."""


def unwrap_state_dict(content: dict, use_ema: bool = False) -> dict[str, torch.Tensor]:
    """The weights in the content of a checkpoint: out of `state_dict`, `model` or `net`, keys without prefixes.

    Args:
        content: What the checkpoint file holds, or weights that are bare already.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones.

    Raises:
        ValueError: If the content holds no weights, no averaged weights where they are asked for, or something that
            is no tensor among its weights.
    """
    wrappers = _EMA_WRAPPERS if use_ema else _WRAPPERS
    state_dict = next((content[key] for key in wrappers if isinstance(content.get(key), dict)), None)
    if state_dict is None:
        if use_ema:
            raise _LayoutError(f"it holds no averaged (EMA) weights: its keys are {shorten(content, 4)}")
        state_dict = content
    state_dict = {_strip_prefixes(str(key)): value for key, value in state_dict.items()}
    others = {key: type(value).__name__ for key, value in state_dict.items() if not isinstance(value, torch.Tensor)}
    if others or not state_dict:
        found = ", ".join(f"{key} is a {kind}" for key, kind in list(others.items())[:3]) or "it is empty"
        raise _LayoutError(
            f"it is no state dict of tensors: {found}; expected tensors, bare or under one of {', '.join(_WRAPPERS)}"
        )
    return state_dict


def read_training_args(path: str | Path) -> dict:
    """The arguments of timm's train.py that a checkpoint of it holds; none for any other checkpoint."""
    args = _read(path).get("args")
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def check_output(path: str | Path) -> Path:
    """Check, before any long work, that weights can be saved as this file.

    Raises:
        ValueError: If its name does not end in .safetensors.
        FileNotFoundError: If its directory does not exist.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"output {path} must end in .safetensors, by which timm knows how to read it")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent}, to write {path.name} in, does not exist")
    return path


def save_weights(state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Save weights as safetensors, so that no half of the file is ever seen there."""
    tensors = {key: value.contiguous() for key, value in state_dict.items()}
    with replacing_file(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        safetensors.torch.save_file(tensors, beside, metadata={"format": "pt"})
        beside.chmod(mode)  # safetensors leaves it to its owner alone


def _read(path: str | Path) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as e:
        raise ValueError(
            f"checkpoint {path} is no whole safetensors file ({e}); it may be truncated: copy or download it again"
        ) from e


def _read_pickle(path: Path) -> dict:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # of a zip, which torch.save writes since 1.6, tensors are read when they are used
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as e:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(e)):
            raise ValueError(
                f"checkpoint {path} needs {refused[1]} to be unpickled, which can run code and is refused; save its "
                "state_dict() alone, with torch.save or as safetensors"
            ) from e
        raise ValueError(f"checkpoint {path} is neither safetensors nor a file of torch.save, or is damaged") from e
    except Exception as e:  # a damaged pickle fails at whatever its first wrong byte leads to
        raise ValueError(
            f"checkpoint {path} cannot be read ({(str(e).splitlines() or [type(e).__name__])[0]}); it may be "
            "truncated: copy or download it again"
        ) from e
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict")
    return content


def _strip_prefixes(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key
