"""A network as timm's train.py left it, and how images reach it: one way for all that takes a trained network."""

import dataclasses
import difflib
import inspect
import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_input_data_config
from timm.models import (
    build_model_with_cfg,
    get_model_input_config,
    model_entrypoint,
    parse_model_name,
    resolve_model_input_args,
    split_model_name_tag,
)
from torch import nn

from .checkpoint import Checkpoint, read_checkpoint
from .convert import Architecture, check_architecture, check_extent, convert_state_dict
from .datasets import read_description
from .errors import first_line, shorten
from .exported import is_exported, read_exported
from .hifuse import HiFuse
from .hub import check_tag
from .image_folders import find_class_names
from .text import abbreviate
from .train_args import CROP_MODES

__all__ = ["PRECISIONS", "Trained", "find_device", "image_mode", "load_for_inference", "load_trained"]

_logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What timm takes for itself, or train.py says elsewhere; none of it describes a network.
_NOT_OF_NETWORKS = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("device", "dtype", "num_classes"),
}

# Channels of the modes in which train.py may read images, as Pillow names them.
_IMAGE_MODES = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}

# Arguments of train.py that say how images reach the network.
_IMAGE_ARGS = ("in_chans", "input_size", "img_size", "crop_pct", "mean", "std", "interpolation")


@dataclass(frozen=True)
class Trained:
    """A network as it was trained, and how images reach it.

    Attributes:
        name: Name of the model, as it was asked for.
        model: The network, in eval mode, on its device.
        model_args: Arguments of the network beyond those that its name and its number of classes stand for.
        data_config: Settings of the transform, as timm names them.
        transform: Makes the network's input, (in_chans, H, W), of an image.
        image_mode: Mode in which images reach the transform, as Pillow names it.
        class_names: Names of the classes in the order of the outputs; None where nothing names them.
        checkpoint: What the checkpoint says of its weights, but without them; None where they are pretrained.
        origins: Where the weights, the transform and the classes come from, in words.
        precision: What a file of `export` computes in; None for a network of PyTorch, which takes any precision.
    """

    name: str
    model: nn.Module
    model_args: dict
    data_config: dict
    transform: object
    image_mode: str
    class_names: tuple[str, ...] | None
    checkpoint: Checkpoint | None
    origins: dict[str, str]
    precision: str | None = None


def load_trained(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    use_ema: bool | None = None,
    device: str | torch.device | None = None,
    data_dir: str | Path | None = None,
    class_map: str | Path | None = None,
    classes: Sequence[str] | None = None,
    folders: Sequence[str] = (),
    model_kwargs: dict | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Trained:
    """Build a network as timm's train.py left it, or pretrained, with its transform and the names of its classes.

    The network and its transform are as the arguments say, else as train.py's arguments in the checkpoint say, else as
    the model's pretrained config says, by timm's own rules. The classes are `classes` or those of `class_map`; else
    those that pretrained weights name themselves, or those of the class map that the training was given; else those of
    `data_dir/dataset.json`; else those of timm's reader on `data_dir/train`, which train.py used; else `folders`. Where
    a choice may not be what is meant, it is logged as a warning.

    Args:
        name: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code; None for the
            pretrained weights of the model.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        device: As `cpu` or `cuda:1`; the machine's accelerator by default, where it has one.
        data_dir: Folder of a dataset, as `prepare` writes it.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`; by default the one
            that train.py's arguments in the checkpoint name.
        classes: Names of the classes in the order of the outputs, in the place of a class map.
        folders: Names of the class folders at hand, in timm's order.
        model_kwargs: Further arguments of the network, over those in the checkpoint.
        img_size: Pixels a side that the network sees.
        crop_pct: Share of the resized image's side that the centre crop keeps.
        crop_mode: One of `CROP_MODES`, how an image of another shape is fitted: its shorter side resized and its middle
            cut out, both sides resized, or its longer side resized and the rest filled.
        mean: Mean of the normalisation, one value or one a channel.
        std: Standard deviation of the normalisation, one value or one a channel.

    Raises:
        ValueError: If an argument is not valid, the checkpoint is of another network or says more than what a network
            is, or the classes do not fit the network.
        OSError: If a file is missing, or the weights cannot be had.
        RuntimeError: If the model has no pretrained weights.
    """
    if use_ema and checkpoint is None:
        raise ValueError("use_ema needs a checkpoint of train.py, which keeps averaged weights: give checkpoint")
    if "num_classes" in (model_kwargs or {}):
        raise ValueError("model_kwargs has num_classes, which the weights say themselves: leave it out")
    if crop_mode not in (None, *CROP_MODES):
        raise ValueError(f"crop_mode {crop_mode!r} is not known: expected one of {', '.join(CROP_MODES)}")
    device = find_device(device)
    architecture, base = _resolve_name(name)
    loaded = None if checkpoint is None else read_checkpoint(checkpoint, use_ema)
    args = {} if loaded is None else _take_args(loaded.training_args, architecture, checkpoint)
    description = {} if data_dir is None else read_description(data_dir)
    find_names = partial(find_class_names, data_dir, description, class_map, args.get("class_map"), folders, classes)
    given = dict(img_size=img_size, crop_pct=crop_pct, crop_mode=crop_mode, mean=mean, std=std)
    given = {key: value for key, value in given.items() if value is not None}
    image_args = {key: args[key] for key in _IMAGE_ARGS if key in args} | given
    if img_size is not None:
        image_args.pop("input_size", None)
    model_args = args.get("model_kwargs", {}) | (model_kwargs or {})

    if loaded is None:
        model = _build(architecture, image_args, base | model_args, name, pretrained=True)
        label_names = _label_names(model) if class_map is None and classes is None else None
        class_names, named_by = (label_names, f"the weights of {name}") if label_names else find_names()
    else:
        class_names, named_by = find_names()
        state_dict = loaded.state_dict
        if architecture.startswith("hifuse_"):
            state_dict, _ = convert_state_dict(state_dict)
            check_extent(model_args, Architecture.of(state_dict))
        model_args = _read_off(state_dict, base["pretrained_cfg"], args, class_names) | model_args
        model = _build(architecture, image_args, base | model_args, name, pretrained=False)
        _load_weights(model, state_dict, f"checkpoint {checkpoint} does not fit {name}")
    what = f"model {name}" if loaded is None else f"checkpoint {checkpoint}"
    _check_classes(class_names, model.num_classes, what, named_by)
    data_config, transform = _resolve_transform(model, image_args | {"model_kwargs": model_args}, name, loaded)
    origins = dict(
        weights=_describe_weights(name, checkpoint, loaded),
        images=_describe_transform(data_config, name, loaded, given),
        classes="not named" if class_names is None else f"named by {named_by}",
    )
    if loaded is not None:
        _warn(checkpoint, loaded, use_ema, origins["images"], class_names if architecture.startswith("hifuse_") else ())
    return Trained(
        name=name,
        model=model.to(device).eval(),
        model_args={key: value for key, value in model_args.items() if key != "num_classes"},
        data_config=data_config,
        transform=transform,
        image_mode=_find_image_mode(model, args.get("input_img_mode"), checkpoint),
        class_names=None if class_names is None else tuple(class_names),
        checkpoint=None if loaded is None else dataclasses.replace(loaded, state_dict={}),
        origins=origins,
    )


def load_for_inference(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    trust_pt2: bool = False,
    device: str | torch.device | None = None,
    data_dir: str | Path | None = None,
    class_map: str | Path | None = None,
    classes: Sequence[str] | None = None,
    folders: Sequence[str] = (),
    **options,
) -> Trained:
    """Build a network to make probabilities alone: as `load_trained`, or from a file of `export`.

    Such a file has the network and its transform, and its classes unless `classes` or `class_map` name them. It is run
    on the CPU.

    Args:
        name: As for `load_trained`; of a file, the architecture that it is of.
        checkpoint: As for `load_trained`, or a file of `export`.
        trust_pt2: Whether to read a .pt2, which can run any code.
        device: As for `load_trained`; of a file, the CPU by default, and nothing else.
        data_dir: As for `load_trained`, as are those that follow.
        class_map: Class map.
        classes: Names of the classes.
        folders: Names of the class folders at hand.
        **options: Others of `load_trained`, of which none can be chosen for a file.

    Raises:
        ValueError: As `load_trained`, or if a file is damaged, of another model, or a .pt2 without `trust_pt2`.
        OSError: As `load_trained`.
        RuntimeError: As `load_trained`, or if a library is missing that runs a file.
    """
    named = dict(data_dir=data_dir, class_map=class_map, classes=classes, folders=folders)
    if not is_exported(checkpoint):
        return load_trained(name, checkpoint, device=device, **named, **options)
    if chosen := [key for key, value in options.items() if value]:
        raise ValueError(f"{', '.join(chosen)} cannot be chosen for {checkpoint}, whose network is as it was exported")
    if device is not None and find_device(device).type != "cpu":
        raise ValueError(f"device {device} is not for {checkpoint}: what export wrote is run on the CPU, give cpu")
    model = read_exported(checkpoint, trust_pt2)
    metadata = model.metadata
    if split_model_name_tag(name)[0] != metadata.architecture:
        raise ValueError(f"{checkpoint} is of {abbreviate(metadata.architecture, 80)}, not of model {name}")
    channels = metadata.transform["input_size"][0]
    if _IMAGE_MODES.get(metadata.image_mode) != channels:
        mode = abbreviate(metadata.image_mode, 40)
        raise ValueError(f"{checkpoint} takes images of mode {mode} in {channels} channels, which do not fit together")
    if metadata.classes and class_map is None and classes is None:
        class_names, named_by = metadata.classes, str(checkpoint)
    else:
        description = {} if data_dir is None else read_description(data_dir)
        class_names, named_by = find_class_names(data_dir, description, class_map, None, folders, classes)
    _check_classes(class_names, metadata.num_classes, str(checkpoint), named_by)
    data_config = {key: tuple(v) if isinstance(v, list) else v for key, v in metadata.transform.items()}
    return Trained(
        name=name,
        model=model.eval(),
        model_args={},
        data_config=data_config,
        transform=create_transform(**data_config),
        image_mode=metadata.image_mode,
        class_names=None if class_names is None else tuple(class_names),
        checkpoint=None,
        origins=dict(
            weights=f"exported to {checkpoint}, {metadata.format} in {metadata.precision}",
            images=f"{_format_transform(data_config)}: as {checkpoint} says",
            classes="not named" if class_names is None else f"named by {named_by}",
        ),
        precision=metadata.precision,
    )


def _check_classes(class_names: Sequence[str] | None, num_classes: int, what: str, named_by: str) -> None:
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{what} has {num_classes} classes, {named_by} has {len(class_names)}: {shorten(class_names)}")


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; by default the machine's accelerator, or the CPU where it has none.

    Raises:
        ValueError: If there is no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # what a build without the device raises
        raise ValueError(f"device {str(name)!r} cannot be used ({first_line(e)}): expected cpu, cuda, ...") from e
    return device


def image_mode(model: nn.Module) -> str:
    """The mode in which timm's train.py reads images for a model, unless it is told another.

    Raises:
        ValueError: If the model takes other than one or three channels.
    """
    in_chans = get_model_input_config(model)["input_size"][0]
    if in_chans not in (1, 3):
        raise ValueError(f"{type(model).__name__} takes {in_chans} channels, pictures have 1 or 3")
    return "L" if in_chans == 1 else "RGB"


def _resolve_name(name: str) -> tuple[str, dict]:
    """The architecture that a name is of, and what `timm.create_model` takes for it."""
    source, model_id = parse_model_name(name)
    if source is None:
        variant, tag = split_model_name_tag(model_id)
        if not timm.is_model(variant):
            near = difflib.get_close_matches(variant, timm.list_models(), n=3) or timm.list_models("hifuse*")
            raise ValueError(f"model {name!r} is not known to timm: near it are {', '.join(near)}")
        check_tag(variant, tag)
    try:
        base = resolve_model_input_args(name)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"model {name} has a config.json that timm cannot read ({e!r:.200})") from e
    except RuntimeError as e:  # names a model that timm does not know
        raise RuntimeError(f"model {name}: {abbreviate(e, 200)}") from e
    architecture = base.pop("model_name")
    model_args = base.get("pretrained_model_args", {}).keys() - {"num_classes"}  # which timm's own writer repeats
    _check_network_args(model_args, architecture, f"model {name} has model_args")
    return architecture, base


def _take_args(training_args: dict, architecture: str, checkpoint: str | Path) -> dict:
    """The arguments of train.py that are set, if those for the network say what it is and nothing else."""
    args = {key: value for key, value in training_args.items() if value not in (None, "")}
    origin = f"checkpoint {checkpoint}, trained as {args.get('model', 'an unknown model')}, has model_kwargs"
    _check_network_args(args.get("model_kwargs", ()), architecture, origin)
    return args


def _check_network_args(names: Collection[str], architecture: str, origin: str) -> None:
    """Check that arguments of a stranger's describe a network, and are none by which timm opens or fetches files."""
    known = _network_args(architecture) if names else set()
    if unknown := [f"{name!r:.80}" for name in names if name not in known]:
        raise ValueError(
            f"{origin} that do not describe a network {architecture}: {shorten(unknown)}; expected some of "
            f"{shorten(sorted(known), 20)}"
        )


def _network_args(architecture: str) -> set[str]:
    """The arguments that describe a network: those of its class, which stands in the module of its entrypoint."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, nn.Module)]
    if module.__name__ == HiFuse.__module__:
        classes = [HiFuse]
    classes = classes or [type(timm.create_model(architecture))]
    return {name for c in classes for name in inspect.signature(c).parameters} - _NOT_OF_NETWORKS


def _read_off(state_dict: dict, cfg: dict, args: dict, class_names: list[str] | None) -> dict:
    """The arguments of the network that train.py has options for: from the weights, else from the arguments."""
    found = {}
    for argument, modules, axis in (("num_classes", cfg.get("classifier"), 0), ("in_chans", cfg.get("first_conv"), 1)):
        module = modules if isinstance(modules, str) else (modules or [""])[0]
        weight = state_dict.get(f"{module}.weight")
        # a stem that takes patches of pixels has more channels than its images
        if weight is not None and weight.ndim > 1 and (axis == 0 or weight.shape[1] in _IMAGE_MODES.values()):
            found[argument] = weight.shape[axis]
        elif argument in args:
            found[argument] = args[argument]
    if class_names is not None:
        found.setdefault("num_classes", len(class_names))
    if found.get("in_chans") == cfg["input_size"][0]:
        del found["in_chans"]
    return found | {
        ours: args[theirs] for ours, theirs in (("global_pool", "gp"), ("bn_eps", "bn_eps")) if theirs in args
    }


def _build(architecture: str, image_args: dict, model_args: dict, name: str, pretrained: bool) -> nn.Module:
    """The network that train.py or validate.py builds with these arguments."""
    try:
        model_args = resolve_model_input_args(architecture, image_args, **model_args)
        return timm.create_model(pretrained=pretrained, **model_args)
    except (OSError, RuntimeError):
        raise
    except Exception as e:  # the arguments are of plain types, but models check them as they please
        model_args = {key: value for key, value in model_args.items() if not key.startswith("pretrained")}
        raise ValueError(
            f"model {name} cannot be built with {abbreviate(model_args, 500)}: {abbreviate(first_line(e), 500)}"
        ) from e


def _load_weights(model: nn.Module, state_dict: dict, fault: str) -> None:
    if isinstance(model, HiFuse):
        check_architecture(state_dict, model.state_dict())
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as e:
        reason = " ".join(line.strip() for line in str(e).splitlines()[1:3])
        raise ValueError(f"{fault}: {reason:.300}") from e


def _label_names(model: nn.Module) -> list[str] | None:
    """The names that a model's pretrained config has for its classes."""
    names = model.pretrained_cfg.get("label_names")
    is_whole = isinstance(names, (list, tuple)) and len(names) == model.num_classes
    return list(names) if is_whole and all(isinstance(name, str) for name in names) else None


def _resolve_transform(model: nn.Module, args: dict, name: str, loaded: Checkpoint | None) -> tuple[dict, object]:
    """The transform of train.py's validation, or of validate.py, and timm's settings of it."""
    try:
        config = resolve_input_data_config(model, args, use_test_size=loaded is None)
        if loaded is not None and loaded.training_args:
            config["crop_mode"] = args.get("crop_mode", "center")  # whatever the model's own settings say
        return config, create_transform(**config)
    except (ArithmeticError, AssertionError, AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"model {name} has settings of images that timm cannot read ({e!r:.200})") from e


def _find_image_mode(model: nn.Module, trained_mode: str | None, checkpoint: str | Path | None) -> str:
    """The mode in which images reach a model: the one that train.py was given, if it fits the model, or the usual."""
    if trained_mode is None:
        return image_mode(model)
    in_chans = get_model_input_config(model)["input_size"][0]
    if _IMAGE_MODES[trained_mode] != in_chans:
        raise ValueError(
            f"checkpoint {checkpoint} has the training argument input_img_mode {trained_mode}, of "
            f"{_IMAGE_MODES[trained_mode]} channels; its network takes {in_chans}"
        )
    return trained_mode


def _describe_weights(name: str, checkpoint: str | Path | None, loaded: Checkpoint | None) -> str:
    if loaded is None:
        return f"pretrained, of {name}"
    kind = "averaged (EMA)" if loaded.averaged else "trained"
    epoch = "" if loaded.epoch is None else f", after epoch {loaded.epoch}"
    return f"{kind} weights in {checkpoint}{epoch}"


def _describe_transform(config: dict, name: str, loaded: Checkpoint | None, given: dict) -> str:
    if loaded is not None and loaded.training_args:
        origin = "as the training's arguments say"
    else:
        origin = f"as the settings of {name} say"
    if given:
        origin += f", but for {', '.join(given)}"
    return f"{_format_transform(config)}: {origin}"


def _format_transform(config: dict) -> str:
    height, width = config["input_size"][1:]
    mean, std = (" ".join(f"{value:.4g}" for value in config[key]) for key in ("mean", "std"))
    return (
        f"{width}x{height} pixels, crop {config['crop_pct']:g} ({config['crop_mode']}), {config['interpolation']}, "
        f"mean {mean}, std {std}"
    )


def _warn(
    checkpoint: str | Path, loaded: Checkpoint, use_ema: bool | None, images: str, hifuse_classes: Sequence[str] | None
) -> None:
    """Log what a checkpoint leaves open."""
    if loaded.has_averaged and use_ema is None:
        _logger.warning(
            f"checkpoint {checkpoint} holds trained and averaged (EMA) weights: the averaged ones are taken, "
            "use_ema=False (--no-use-ema) takes the others"
        )
    if loaded.training_args:
        return
    _logger.warning(f"checkpoint {checkpoint} holds no training arguments, so images are taken at {images}")
    if list(hifuse_classes or ()) != sorted(hifuse_classes or ()):
        _logger.warning(
            f"the classes are taken in the order {shorten(hifuse_classes)}; the authors' code and torchvision sort "
            f"folders as {shorten(sorted(hifuse_classes))}. If the training was theirs, give a class map in that order"
        )
