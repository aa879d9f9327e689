"""Files of weights: read safely, unwrap, save."""

import argparse
import copy
import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from .errors import first_line, shorten
from .files import check_writable, replacing_file
from .train_args import check_train_args

__all__ = [
    "Checkpoint",
    "check_finite",
    "check_output",
    "checksum_weights",
    "read_checkpoint",
    "save_weights",
    "unwrap_state_dict",
]

# Where a checkpoint keeps its weights: timm's train.py under state_dict, the authors' training code under net.
_WRAPPERS = ("state_dict", "model", "net")

_EMA_WRAPPERS = ("state_dict_ema", "model_ema")

# What wrappers put before the keys of a network or of its parts. In front, `module` is of DistributedDataParallel;
# further in, it may be the network's own.
_WRAPPED = "_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module"
_PREFIXES = re.compile(rf"^(?:(?:module|{_WRAPPED})\.)+|(?<=\.)(?:{_WRAPPED})\.")

_LONGEST_KEY = 500


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says of a network: one set of weights, and how they came about.

    Attributes:
        state_dict: The weights, in memory of their own, keys without prefixes.
        training_args: The arguments of timm's train.py, none of a file of anything else.
        averaged: Whether these are the averaged (EMA) weights of a training.
        has_averaged: Whether the file holds averaged weights beside the trained ones.
        epoch: The epoch, counted from 0, after which train.py saved them; None where the file does not say.
    """

    state_dict: dict[str, torch.Tensor]
    training_args: dict
    averaged: bool
    has_averaged: bool
    epoch: int | None


def read_checkpoint(path: str | Path, use_ema: bool | None = None) -> Checkpoint:
    """Read a checkpoint file, once, in whatever layout it is.

    Reads safetensors, and pickles with nothing in them but tensors, plain Python values and the argparse.Namespace
    of timm's train.py; unwraps `state_dict`, `model` and `net`, and takes off the keys what wrappers put there:
    `module.` of DistributedDataParallel, and what torch.compile, FSDP and activation checkpointing name themselves.

    Args:
        path: The file; safetensors by its ending, otherwise a pickle made by torch.save.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones, and picks its best
            epoch by. By default they are taken where there are some.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, needs any other pickled global, holds no weights of the kind asked for,
            something that is no plain tensor among its weights, or a training argument of the wrong kind.
    """
    content = _read(path)
    try:
        state_dict, averaged, has_averaged = _find_weights(content, use_ema)
        _check_memory(state_dict, Path(path).stat().st_size)
        args, epoch = content.get("args"), content.get("epoch")
        return Checkpoint(
            # what is used later is what was read now, whatever becomes of the mapped file; shared memory stays shared
            state_dict=copy.deepcopy(state_dict),
            training_args=check_train_args(vars(args)) if isinstance(args, argparse.Namespace) else {},
            averaged=averaged,
            has_averaged=has_averaged,
            epoch=epoch if type(epoch) is int else None,
        )
    except ValueError as e:
        raise ValueError(f"checkpoint {path}: {e}") from None


def unwrap_state_dict(content: dict, use_ema: bool | None = None) -> dict[str, torch.Tensor]:
    """The weights in the content of a checkpoint: out of `state_dict`, `model` or `net`, keys without prefixes.

    Args:
        content: What the checkpoint file holds, or weights that are bare already.
        use_ema: Whether to take averaged weights; by default where there are some.

    Raises:
        ValueError: If the content holds no weights of the kind asked for, or something that is no plain tensor among
            them.
    """
    return _find_weights(content, use_ema)[0]


def _find_weights(content: dict, use_ema: bool | None) -> tuple[dict[str, torch.Tensor], bool, bool]:
    """The weights, whether they are averaged ones, and whether there are both."""
    averaged = next((content[key] for key in _EMA_WRAPPERS if isinstance(content.get(key), dict)), None)
    trained = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
    keys = shorten((f"{key!r:.80}" for key in content), 4)
    if averaged is None and use_ema:
        raise ValueError(f"it holds no averaged (EMA) weights: its keys are {keys}")
    if averaged is not None and trained is None and use_ema is False:
        raise ValueError(f"it holds averaged (EMA) weights alone: its keys are {keys}")
    take_averaged = averaged is not None and use_ema is not False
    state_dict = averaged if take_averaged else content if trained is None else trained
    return _clean(state_dict), take_averaged, averaged is not None and trained is not None


def _clean(state_dict: dict) -> dict[str, torch.Tensor]:
    """The tensors alone, without what may have been set on them, by keys without prefixes."""
    cleaned, faults = {}, []
    for key, value in state_dict.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > _LONGEST_KEY:
            found = f"{key!r:.80}" if isinstance(key, str) else f"a {type(key).__name__}"
            raise ValueError(f"it is no state dict: {found} is among its keys, expected names of weights")
        name = _PREFIXES.sub("", key)
        if fault := _find_fault(value):
            faults.append(f"{key} is {fault}")
        elif name in cleaned:
            raise ValueError(f"it is no state dict of one network: {key} and another of its keys mean {name}")
        else:
            cleaned[name] = torch.Tensor.detach(value)
    if faults or not cleaned:
        raise ValueError(
            f"it is no state dict of tensors: {shorten(faults, 3) or 'it is empty'}; expected tensors, bare or under "
            f"one of {', '.join(_WRAPPERS)}"
        )
    return cleaned


def _find_fault(value: object) -> str | None:
    """What keeps a value from being a plain tensor, None for nothing."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.is_quantized:
        return "quantized"
    if value.layout != torch.strided or value.is_nested:
        return "a sparse or nested tensor"
    if value.is_meta:
        return "a meta tensor, which has no values"
    if torch.is_complex(value) or torch.is_neg(value):  # a method may be hidden by what was set on the tensor
        return "a complex tensor, or a view of one"
    return None


def _check_memory(state_dict: dict[str, torch.Tensor], file_size: int) -> None:
    """Check that the tensors of a file do not take more memory than it holds, as one value said to be many does."""
    size = sum(value.nbytes for value in state_dict.values())
    if size > 2 * file_size:  # networks may use some weights twice
        key = max(state_dict, key=lambda key: state_dict[key].nbytes - state_dict[key].untyped_storage().nbytes())
        raise ValueError(
            f"its weights would take {size:,} bytes and the file has {file_size:,}: some are stored once and said to "
            f"be many, as {key} of shape {tuple(state_dict[key].shape)}; save them contiguous"
        )


def checksum_weights(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights and their names, whatever file they are in."""
    checksum = hashlib.sha256()
    for name, tensor in state_dict.items():
        checksum.update(name.encode())
        checksum.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return checksum.hexdigest()


def check_finite(state_dict: dict[str, torch.Tensor]) -> None:
    """Check that weights are finite numbers, in float32, in which networks take them.

    Raises:
        ValueError: If some are NaN or infinite; names them.
    """
    faults = [key for key, value in state_dict.items() if not value.float().isfinite().all()]
    if faults:
        raise ValueError(f"its weights are not finite, as after a training that diverged: {shorten(faults, 4)}")


def check_output(path: str | Path) -> Path:
    """Check, before any long work, that weights can be saved as this file.

    Raises:
        ValueError: If its name does not end in .safetensors.
        OSError: If it cannot be written, as where its directory does not exist.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"output {path} must end in .safetensors, by which timm knows how to read it")
    check_writable(path)
    return path


def save_weights(state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Save weights as safetensors, so that no half of the file is ever seen there.

    Raises:
        OSError: If the file cannot be written, as on a full disk.
        ValueError: If two of the weights are one in memory.
    """
    tensors = {key: value.contiguous() for key, value in state_dict.items()}
    with replacing_file(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        try:
            safetensors.torch.save_file(tensors, beside, metadata={"format": "pt"})
        except safetensors.SafetensorError as e:  # which is no OSError where the disk is full either
            raise OSError(f"{path} cannot be written: {first_line(e)}") from e
        except RuntimeError as e:
            raise ValueError(f"weights cannot be saved: {first_line(e)}") from e
        beside.chmod(mode)  # safetensors leaves it to its owner alone


def _read(path: str | Path) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as e:  # also of kinds of numbers that one of the two libraries does not know yet
        raise ValueError(
            f"checkpoint {path} is no whole safetensors file ({first_line(e)}); it may be truncated: copy or download "
            "it again"
        ) from e


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(4) == b"PK\3\4"


def _read_pickle(path: Path) -> dict:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # of a zip, which torch.save writes since 1.6, tensors are read when they are used
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_starts_as_zip(path))
    except pickle.UnpicklingError as e:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(e)):
            raise ValueError(
                f"checkpoint {path} needs {refused[1]} to be unpickled, which can run code and is refused; save its "
                "state_dict() alone, with torch.save or as safetensors"
            ) from e
        raise ValueError(f"checkpoint {path} is neither safetensors nor a file of torch.save, or is damaged") from e
    except Exception as e:  # a damaged pickle fails at whatever its first wrong byte leads to
        raise ValueError(
            f"checkpoint {path} cannot be read ({first_line(e)}); it may be truncated: copy or download it again"
        ) from e
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict")
    return content
