"""Damaged, odd and hostile checkpoints, one a seed: a few changes to what train.py or the authors' code saves."""

import argparse
import functools
import random
from pathlib import Path

import timm
import torch
from conftest import NARROW
from parity import narrow_authors_state_dict
from safetensors.torch import save_file

from hifuse_timm.checkpoint import read_checkpoint
from hifuse_timm.convert import convert_file

_JUNK = (
    *(None, True, 0, -1, 3, 10**30, 1.5, float("nan"), 1j, "", "avg", "x\n# y", "\udcff", b"x", "../../etc", [], [1]),
    *([0.1, 0.2, 0.3], {}, {"dims": (4,)}, {1: 2}, {1, 2}, torch.zeros(2), torch.device("cpu"), torch.Size([2])),
)
_ARGS = (
    "model num_classes in_chans input_size img_size gp bn_eps model_kwargs mean std interpolation crop_pct crop_mode "
    "input_img_mode class_map epochs lr opt model_ema foo"
).split()
_KEYS = (
    *(1, None, ("a",), b"k", "", "a\nb", "\x1b[31m", "\udcff", "x" * 10_000, "head.fc.weight", "head.fc.bias"),
    *("stages.4.local_blocks.0.fc.weight", "stages.0.local_blocks.7.fc.weight", "stages.0.fusion.irmlp.conv.weight"),
    *("local_stem.0.weight", "patch_embed.proj.weight", "fu5.residual.conv1.conv.weight"),
)
_PREFIXES = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "weird.")
_DTYPES = (torch.complex64, torch.int64, torch.bool, torch.float16, torch.float8_e4m3fn, torch.uint16)
_TENSORS = (
    *(lambda t, dtype=dtype: t.to(dtype) for dtype in _DTYPES),
    *(lambda t, value=value: torch.full_like(t.float(), value) for value in (torch.nan, torch.inf)),
    *(lambda t, shape=shape: torch.zeros(shape) for shape in ((), (0,), (5,), (2, 3, 4), (1 << 20, 1))),
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: t.movedim(0, -1) if t.dim() else t,
    lambda t: torch.zeros(1).expand(t.shape),
    lambda t: torch.zeros(1).expand(100_000, 100_000),
    lambda t: t.to("meta"),
    lambda t: torch.eye(3).to_sparse(),
    lambda t: torch.nn.Parameter(t.float()),
)


@functools.cache
def _bases() -> tuple[dict, dict]:
    return timm.create_model("hifuse_tiny", **NARROW).state_dict(), narrow_authors_state_dict()


def write_checkpoint(seed: int, folder: Path) -> Path:
    """Write the checkpoint of a seed: changed in content, in its bytes, in both, or not at all."""
    rng = random.Random(seed)
    args = argparse.Namespace(lr=0.1, model_kwargs=NARROW)
    content = dict(epoch=3, state_dict=dict(rng.choice(_bases())), args=args)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice((_change_tensor, _change_tensor, _change_keys, _change_args, _change_wrapper))(rng, content)
    weights = content["state_dict"]
    if rng.random() < 0.2 and all(isinstance(k, str) and k.isprintable() for k in weights):
        path = folder / f"{seed}.safetensors"
        plain = {k: v for k, v in weights.items() if v.layout == torch.strided and not v.is_meta and v.nbytes < 1e7}
        save_file({key: value.contiguous().clone() for key, value in plain.items()}, path)
    else:
        path = folder / f"{seed}.pth"
        torch.save(rng.choice((content, content, weights)), path, _use_new_zipfile_serialization=rng.random() < 0.85)
    if rng.random() < 0.2:
        _damage(rng, path)
    return path


def _change_tensor(rng: random.Random, content: dict) -> None:
    key = rng.choice(list(content["state_dict"]))
    content["state_dict"][key] = rng.choice(_TENSORS)(content["state_dict"][key])


def _change_keys(rng: random.Random, content: dict) -> None:
    weights = content["state_dict"]
    key, other = rng.choices(list(weights), k=2)
    change = rng.randrange(4)
    if change == 0 and len(weights) > 1:
        del weights[key]
    elif change == 1:
        weights[rng.choice(_KEYS)] = weights[key]
    elif change == 2:
        weights[key], weights[other] = weights[other], weights[key]
    else:
        prefix, level = rng.choice(_PREFIXES), rng.randrange(3)
        parts = {key: str(key).split(".") for key in weights}
        content["state_dict"] = {
            ".".join(p[:level] + [prefix + ".".join(p[level:])]): weights[key] for key, p in parts.items()
        }


def _change_args(rng: random.Random, content: dict) -> None:
    if isinstance(content["args"], argparse.Namespace):
        content["args"] = argparse.Namespace(**vars(content["args"]) | {rng.choice(_ARGS): rng.choice(_JUNK)})


def _change_wrapper(rng: random.Random, content: dict) -> None:
    key = rng.choice(("state_dict_ema", "model_ema", "model", "net", "epoch", "args"))
    content[key] = rng.choice((*_JUNK, dict(content["state_dict"]), {"state_dict": content["state_dict"]}))


def _damage(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 5, 50))):
        i = rng.randrange(rng.choice((64, 5000, len(data))))
        data[i : i + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])


def load_in_every_way(path: Path) -> bool:
    """Read, convert and load a checkpoint, and load what convert wrote; whether all of it was possible.

    A refusal is a ValueError or an OSError. Anything else that is raised is a fault.
    """
    outcomes = [_is_taken(read_checkpoint, path), _is_taken(_convert_and_load, path)]
    overlay = dict(file=str(path))
    outcomes.append(
        _is_taken(timm.create_model, "hifuse_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    )
    return all(outcomes)


def _is_taken(function, *args, **kwargs) -> bool:
    try:
        function(*args, **kwargs)
    except (ValueError, OSError) as e:
        assert str(e).isprintable() and len(str(e)) < 2000, f"no clear error: {e}"
        return False
    return True


def _convert_and_load(path: Path) -> None:
    conversion = convert_file(path, path.with_suffix(".converted.safetensors"), allow_nonfinite=True)
    architecture = conversion.architecture
    name, kwargs = architecture.recipe
    kwargs |= dict(in_chans=architecture.in_chans, num_classes=architecture.num_classes or 0)
    network = timm.create_model(name, device="meta", **kwargs)
    network.load_state_dict(read_checkpoint(conversion.output).state_dict, assign=True)
    conversion.output.unlink()
