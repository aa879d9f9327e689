"""Networks to explain, and how images reach them."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from ..checkpoint import read_checkpoint
from ..convert import check_architecture, convert_state_dict
from ..hifuse import HiFuse

__all__ = ["Network", "image_mode", "load_network", "resolve_model_config"]


@dataclass(frozen=True)
class Network:
    """A network and how images reach it."""

    name: str
    model: nn.Module
    transform: object
    mode: str  # of the images, as Pillow names it
    labels: tuple[str, ...] | None

    def name_class(self, index: int) -> str:
        return self.labels[index] if self.labels else f"class {index}"


def load_network(
    name: str, checkpoint: str | Path | None, use_ema: bool | None, data_dir: Path | None, device: torch.device
) -> Network:
    """Create a timm model with the weights of a checkpoint, or pretrained, and its preprocessing."""
    training_args = {}
    if checkpoint is None:
        model = timm.create_model(name, pretrained=True)
    else:
        if not timm.is_model(name.partition(".")[0]):
            near = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("hifuse*")
            raise ValueError(f"model {name!r} is not registered with timm; near it are {', '.join(near)}")
        loaded = read_checkpoint(checkpoint, use_ema)
        state_dict, training_args = loaded.state_dict, loaded.training_args
        if name.startswith("hifuse_"):
            state_dict, _ = convert_state_dict(state_dict)
        model_args = dict(training_args.get("model_kwargs") or {})
        for argument, theirs in (("global_pool", "gp"), ("bn_eps", "bn_eps")):
            if training_args.get(theirs) is not None:
                model_args.setdefault(argument, training_args[theirs])
        cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        for argument, modules, axis in (("num_classes", cfg.classifier, 0), ("in_chans", cfg.first_conv, 1)):
            module = modules if isinstance(modules, str) else (modules or [""])[0]
            weight = state_dict.get(f"{module}.weight")
            if weight is not None:
                model_args[argument] = weight.shape[axis]
            elif training_args.get(argument):
                model_args[argument] = training_args[argument]
        try:
            model = timm.create_model(name, **model_args)
        except TypeError as e:
            raise ValueError(
                f"checkpoint {checkpoint} was trained as {training_args.get('model')} with arguments that {name} does "
                f"not take: {e}"
            ) from e
        if isinstance(model, HiFuse):
            check_architecture(state_dict, model.state_dict())
        try:
            model.load_state_dict(state_dict)
        except RuntimeError as e:
            reason = " ".join(line.strip() for line in str(e).splitlines()[1:3])
            raise ValueError(f"checkpoint {checkpoint} does not fit {name}: {reason[:300]}") from e
    mode = training_args.get("input_img_mode") or image_mode(model)
    transform = create_transform(**resolve_model_config(model, training_args))
    labels = model.pretrained_cfg.get("label_names")
    if data_dir is not None:
        labels = _read_classes(data_dir)
        if len(labels) != model.num_classes:
            raise ValueError(f"{data_dir} has {len(labels)} classes, {name} has {model.num_classes}")
    if labels is not None and len(labels) != model.num_classes:
        labels = None
    return Network(name, model.to(device).eval(), transform, mode, None if labels is None else tuple(labels))


def resolve_model_config(model: nn.Module, training_args: dict | None = None) -> dict:
    """timm's data config of the model, for the channels that it has."""
    config = resolve_data_config(training_args, model=model)
    in_chans = _count_channels(model)
    return dict(
        config,
        input_size=(in_chans, *config["input_size"][1:]),
        mean=tuple(config["mean"][:in_chans]),
        std=tuple(config["std"][:in_chans]),
    )


def _count_channels(model: nn.Module) -> int:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def image_mode(model: nn.Module) -> str:
    """The mode in which timm's train.py reads images for the model."""
    in_chans = _count_channels(model)
    if in_chans not in (1, 3):
        raise ValueError(f"{type(model).__name__} takes {in_chans} channels, pictures have 1 or 3")
    return "L" if in_chans == 1 else "RGB"


def _read_classes(data_dir: Path) -> list[str]:
    """The classes of a prepared dataset, in the order of their indices."""
    path = data_dir / "dataset.json"
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except OSError as e:
        raise OSError(f"{path}, which names the classes of a prepared dataset, cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not of a prepared dataset: it names no classes") from e
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"{path} has the classes {classes!r}, expected a list of names")
    return classes
