"""Warm start: timm's ImageNet weights of ConvNeXt and Swin as the start of HiFuse's local and global branch."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from .checkpoint import check_output, save_weights
from .hub import download, redact

__all__ = ["Origin", "summarize_origins", "warm_start"]

# Both trained on ImageNet-1k alone, and as wide as HiFuse. Of a stage that is deeper than HiFuse's the first blocks are
# taken, so that Swin's shifted blocks stay shifted ones; Xu et al. 2023 (arXiv:2311.18823) start smaller networks so.
_TINY_SOURCES = ("convnext_tiny.fb_in1k", "swin_tiny_patch4_window7_224.ms_in1k")
_SMALL_SOURCES = ("convnext_small.fb_in1k", "swin_small_patch4_window7_224.ms_in1k")

# Our keys, and the keys of the tensors of the same role: in the local branch timm's ConvNeXt's, in the global one its
# Swin's. What is not here has no counterpart: the blocks' 1x1 layers (C -> C; the sources' MLPs are C -> 4C -> C), the
# HFF blocks, and the head's norm, which takes fused maps.
_LOCAL_ROLES = (
    (r"local_stem\.(.+)", r"stem.\1"),
    (r"stages\.(\d+)\.local_downsample\.(.+)", r"stages.\1.downsample.\2"),
    (r"stages\.(\d+)\.local_blocks\.(\d+)\.(conv_dw|norm)\.(.+)", r"stages.\1.blocks.\2.\3.\4"),
)
_GLOBAL_ROLES = (
    (r"global_stem\.0\.(.+)", r"patch_embed.proj.\1"),
    (r"global_stem\.1\.(.+)", r"patch_embed.norm.\1"),
    (r"stages\.(\d+)\.global_downsample\.(.+)", r"layers.\1.downsample.\2"),
    (r"stages\.(\d+)\.global_blocks\.(\d+)\.norm\.(.+)", r"layers.\1.blocks.\2.norm1.\3"),
    (r"stages\.(\d+)\.global_blocks\.(\d+)\.attn\.(.+)", r"layers.\1.blocks.\2.attn.\3"),
)


@dataclass(frozen=True)
class Origin:
    """Where a parameter of a warm start comes from.

    Attributes:
        source: Name of timm's model with its tag, None for HiFuse's own initialisation.
        key: Key of the tensor in that model's state dict, None for HiFuse's own initialisation.
        numel: Number of values in the parameter.
    """

    source: str | None
    key: str | None
    numel: int


def warm_start(model_name: str, output: str | Path, seed: int = 0) -> dict[str, Origin]:
    """Write weights to start a training from: ImageNet's where a source has them, HiFuse's initialisation elsewhere.

    The local branch takes over ConvNeXt's stem, downsampling, depthwise convolutions (the middle 3x3 of the 7x7
    kernels, and the biases) and block norms, the global branch Swin's stem, patch merging, block norms, qkv, proj and
    relative position tables: those of ConvNeXt-T and Swin-T, for the base variants of ConvNeXt-S and Swin-S. The file
    has no classifier: timm makes one for any number of classes.

    Args:
        model_name: Name of a registered model, without tag.
        output: The safetensors file to write; one that is there is replaced.
        seed: Seed of the initialisation of what no source has.

    Returns:
        Where each parameter in the file comes from, by key.

    Raises:
        ValueError: If the model is not registered, or the file's name does not end in .safetensors.
        OSError: If the directory to write in does not exist, or the sources' weights cannot be had.
    """
    known = timm.list_models("hifuse_*")
    if model_name not in known:
        raise ValueError(f"model {model_name!r} is not registered: expected one of {', '.join(known)}")
    output = check_output(output)
    convnext, swin = _SMALL_SOURCES if model_name.startswith("hifuse_base") else _TINY_SOURCES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(model_name, num_classes=0)
    state_dict = model.state_dict()
    origins = {key: Origin(None, None, parameter.numel()) for key, parameter in model.named_parameters()}
    for source, roles in ((convnext, _LOCAL_ROLES), (swin, _GLOBAL_ROLES)):
        weights = _load(source)
        for key in origins:
            for pattern, template in roles:
                if match := re.fullmatch(pattern, key):
                    theirs = match.expand(template)
                    state_dict[key] = _fit(weights[theirs], state_dict[key].shape)
                    origins[key] = Origin(source, theirs, state_dict[key].numel())
    save_weights(state_dict, output)
    return origins


def _load(source: str) -> dict[str, torch.Tensor]:
    """State dict of one of timm's pretrained models, in the layout of the installed timm."""
    repo_id = get_pretrained_cfg(source).hf_hub_id
    try:
        path = download(repo_id)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"the weights of {source} are not at {repo_id} on the Hub ({redact(constants.ENDPOINT)}): if HF_ENDPOINT "
            "names a mirror, it may lack them"
        ) from e
    return timm.create_model(source, pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).state_dict()


def _fit(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A source's tensor in our shape: of a larger kernel, the middle."""
    if weight.dim() == 4 and weight.shape[2:] != shape[2:]:
        top, left = (weight.shape[2] - shape[2]) // 2, (weight.shape[3] - shape[3]) // 2
        weight = weight[:, :, top : top + shape[2], left : left + shape[3]]
    if weight.shape != shape:
        raise ValueError(f"a source has a tensor of shape {tuple(weight.shape)} where HiFuse has {tuple(shape)}")
    return weight


def summarize_origins(origins: dict[str, Origin]) -> str:
    """What `warm_start` took from where and what it left at its initialisation, in lines to read."""
    lines = []
    total = sum(origin.numel for origin in origins.values())
    for source in sorted({origin.source for origin in origins.values() if origin.source}) + [None]:
        tensors, values = Counter(), Counter()
        for key, origin in origins.items():
            if origin.source == source:
                line = _generalize(key) if source is None else f"{_generalize(key)} <- {_generalize(origin.key)}"
                line += ", the middle 3x3 of 7x7" if source and ".conv_dw" in key else ""
                tensors[line] += 1
                values[line] += origin.numel
        if source is None:
            lines.append("at HiFuse's own initialisation:")
        else:
            cfg = get_pretrained_cfg(source)
            lines.append(f"from {source} (https://huggingface.co/{cfg.hf_hub_id}, licence {cfg.license}):")
        lines += [f"  {line}: {tensors[line]} tensors, {values[line]:,} parameters" for line in tensors]
        lines.append(f"  in all {sum(values.values()):,} of {total:,} parameters")
    return "\n".join(lines)


def _generalize(key: str) -> str:
    """The layer that a key belongs to, with * for the numbers of stages and blocks; HFF blocks as a whole."""
    layer = re.sub(r"(\.fusion)\..*|\.(weight|bias)$", r"\1", key)
    return re.sub(r"(?<=\.)\d+", "*", layer)
