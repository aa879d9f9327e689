"""Which network some weights are of, and the layout of the authors' code turned into ours."""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from torch import nn

from .checkpoint import Checkpoint, check_finite, check_output, read_checkpoint, save_weights, unwrap_state_dict
from .errors import shorten
from .text import abbreviate

__all__ = [
    "Architecture",
    "Conversion",
    "check_architecture",
    "check_extent",
    "checkpoint_filter_fn",
    "convert_file",
    "convert_state_dict",
    "summarize_conversion",
    "summarize_dropped",
]

# Blocks per stage of the variants (Section 3.2 and Table 1), and what they share.
_VARIANT_DEPTHS = {"hifuse_tiny": (2, 2, 2, 2), "hifuse_small": (2, 2, 6, 2), "hifuse_base": (2, 2, 18, 2)}

_VARIANT_KWARGS = dict(dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), window_size=7)

_MOST_STAGES = 8  # each halves the maps, and the eighth has a token for 512 pixels

# The axis of these that timm fits to a model's number of classes or input channels.
_FITTED_AXES = {"head.fc.weight": 0, "head.fc.bias": 0, "local_stem.0.weight": 1, "global_stem.0.weight": 1}

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The authors' keys of stage {i}, {n} = {i} + 1, and ours behind "stages.{i}."; those that are not here never run.
_STAGE_RULES = (
    (r"downsample_layers\.{i}\.", "local_downsample."),
    (r"stages\.{i}\.(\d+)\.dwconv\.", r"local_blocks.\1.conv_dw."),
    (r"stages\.{i}\.(\d+)\.norm\.", r"local_blocks.\1.norm."),
    (r"stages\.{i}\.(\d+)\.pwconv\.", r"local_blocks.\1.fc."),
    (r"layers{n}\.downsample\.", "global_downsample."),
    (r"layers{n}\.blocks\.(\d+)\.norm1\.", r"global_blocks.\1.norm."),
    (r"layers{n}\.blocks\.(\d+)\.attn\.", r"global_blocks.\1.attn."),
    (r"layers{n}\.blocks\.(\d+)\.fc1\.", r"global_blocks.\1.fc."),
    (r"fu{n}\.spatial\.", "fusion.spatial_attn.conv."),
    (r"fu{n}\.se\.", "fusion.channel_attn.mlp."),
    (r"fu{n}\.W_l\.conv\.", "fusion.local_proj.fc."),
    (r"fu{n}\.W_l\.bn\.", "fusion.local_proj.bn."),
    (r"fu{n}\.W_g\.conv\.", "fusion.global_proj.fc."),
    (r"fu{n}\.W_g\.bn\.", "fusion.global_proj.bn."),
    (r"fu{n}\.norm3\.", "fusion.irmlp.norm."),
    (r"fu{n}\.residual\.conv1\.conv\.", "fusion.irmlp.conv."),
    (r"fu{n}\.residual\.bn1\.", "fusion.irmlp.bn1."),
    (r"fu{n}\.residual\.conv2\.conv\.", "fusion.irmlp.fc1."),
    (r"fu{n}\.residual\.conv3\.conv\.", "fusion.irmlp.fc2."),
    (r"fu{n}\.residual\.conv3\.bn\.", "fusion.irmlp.bn2."),
)

# The first HFF block fuses two maps, through W and norm2; the others three, through W3 and norm1, and Updim.
_FIRST_STAGE_RULES = (
    (r"fu{n}\.W\.conv\.", "fusion.fuse_proj.fc."),
    (r"fu{n}\.W\.bn\.", "fusion.fuse_proj.bn."),
    (r"fu{n}\.norm2\.", "fusion.norm."),
)

_NEXT_STAGE_RULES = (
    (r"fu{n}\.W3\.conv\.", "fusion.fuse_proj.fc."),
    (r"fu{n}\.W3\.bn\.", "fusion.fuse_proj.bn."),
    (r"fu{n}\.norm1\.", "fusion.norm."),
    (r"fu{n}\.Updim\.conv\.", "fusion.previous_proj.0.fc."),
    (r"fu{n}\.Updim\.bn\.", "fusion.previous_proj.0.bn."),
)

_RULES = (
    (r"downsample_layers\.0\.", "local_stem."),
    (r"patch_embed\.proj\.", "global_stem.0."),
    (r"patch_embed\.norm\.", "global_stem.1."),
    (r"conv_norm\.", "head.norm."),
    (r"conv_head\.", "head.fc."),
)

# Made at construction in our network, kept in the authors' checkpoints.
_BUFFERS = ("attn.relative_position_index", "attn_mask")

# A BatchNorm's, which are no parameters.
_BN_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Architecture:
    """What a state dict in our layout says of its network."""

    dims: tuple[int, ...]
    local_depths: tuple[int, ...]
    global_depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    dense: bool
    in_chans: int
    num_classes: int | None
    branch_attention: bool = True
    irmlp: bool = True

    @classmethod
    def of(cls, state_dict: dict[str, torch.Tensor]) -> "Architecture":
        """Read the architecture off the shapes of a state dict in our layout.

        Whether the HFF blocks have a shortcut cannot be read: it has no weights.

        Raises:
            ValueError: If the state dict is not one of HiFuse, or has a tensor that no HiFuse could have.
        """
        blocks = Counter()
        for key in state_dict:
            if match := re.fullmatch(r"stages\.(\d+)\.(local|global)_blocks\.\d+\.fc\.weight", key):
                blocks[match.groups()] += 1
        dims = []
        while (key := f"stages.{len(dims)}.local_blocks.0.fc.weight") in state_dict:
            dims.append(_get_shape(state_dict, key, 2)[0])
        if not dims or "local_stem.0.weight" not in state_dict:
            raise ValueError(_describe_foreign(state_dict))
        if len(dims) > _MOST_STAGES:
            raise ValueError(f"the weights are of {len(dims)} stages, expected at most {_MOST_STAGES}")
        local_depths, global_depths = (
            tuple(blocks[str(i), branch] for i in range(len(dims))) for branch in ("local", "global")
        )
        # of every relative position between the tokens of a window, a bias for each head
        tables = [
            _get_shape(state_dict, f"stages.{i}.global_blocks.0.attn.relative_position_bias_table", 2)
            for i, depth in enumerate(global_depths)
            if depth
        ]
        irmlp_conv = "stages.0.fusion.irmlp.conv.weight"
        return cls(
            dims=tuple(dims),
            local_depths=local_depths,
            global_depths=global_depths,
            num_heads=tuple(heads for _, heads in tables),
            window_size=(math.isqrt(tables[0][0]) + 1) // 2 if tables else _VARIANT_KWARGS["window_size"],
            dense=irmlp_conv in state_dict and _get_shape(state_dict, irmlp_conv, 4)[1] > 1,
            in_chans=_get_shape(state_dict, "local_stem.0.weight", 4)[1],
            num_classes=_get_shape(state_dict, "head.fc.weight", 2)[0] if "head.fc.weight" in state_dict else None,
            branch_attention="stages.0.fusion.spatial_attn.conv.conv.weight" in state_dict
            or "stages.0.fusion.spatial_attn.conv.weight" in state_dict,  # folded
            irmlp=irmlp_conv in state_dict,
        )

    @property
    def variant(self) -> str | None:
        """Name of the registered variant of these widths, depths and parts, None where there is none."""
        name, kwargs = self.recipe
        return None if kwargs else name

    @property
    def recipe(self) -> tuple[str, dict]:
        """A registered model, and the arguments with which it is this network but for classes and input channels."""
        suffix = "_dense" if self.dense else ""
        kwargs = dict(dims=self.dims, depths=self.local_depths)
        if any(self.global_depths):
            kwargs.update(global_depths=self.global_depths, num_heads=self.num_heads, window_size=self.window_size)
            kwargs.update(branch_attention=self.branch_attention, irmlp=self.irmlp)
        else:
            kwargs.update(branches="local")
        defaults = _VARIANT_KWARGS | dict(global_depths=self.local_depths, branch_attention=True, irmlp=True)
        kwargs = {key: value for key, value in kwargs.items() if key not in defaults or value != defaults[key]}
        for name, depths in _VARIANT_DEPTHS.items():
            if kwargs == dict(depths=depths):
                return name + suffix, {}
        if kwargs["depths"] == _VARIANT_DEPTHS["hifuse_tiny"]:
            del kwargs["depths"]
        return "hifuse_tiny" + suffix, kwargs

    def __str__(self) -> str:
        kind = ("dense" if self.dense else "depthwise") + " IRMLP" if self.irmlp else "no IRMLP"
        if self.variant:
            return f"{self.variant} ({kind})"
        layout = f"dims {self.dims}, depths {self.local_depths}"
        if not any(self.global_depths):
            return f"a HiFuse of {layout}, local branch alone"
        attention = "" if self.branch_attention else "no branch attention, "
        heads = f"heads {self.num_heads}, windows of {self.window_size}"
        return f"a HiFuse of {layout} local and {self.global_depths} global, {attention}{kind}, {heads}"


def _get_shape(state_dict: dict[str, torch.Tensor], key: str, num_dims: int) -> tuple[int, ...]:
    """Shape of one of HiFuse's weights.

    Raises:
        ValueError: If it is missing, or of another number of dimensions, or empty.
    """
    if key not in state_dict:
        raise ValueError(f"the weights are not whole: {key} is missing")
    shape = tuple(state_dict[key].shape)
    if len(shape) != num_dims or 0 in shape:
        raise ValueError(f"{key} has the shape {shape}, expected {num_dims} sizes from 1 up")
    return shape


def _describe_foreign(state_dict: dict[str, torch.Tensor]) -> str:
    return (
        f"the weights are not those of a HiFuse: their keys are {shorten(state_dict, 4)}; expected local_stem.0.weight "
        "and so on, or patch_embed.proj.weight and so on, as the authors' code names them"
    )


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Turn the weights of the authors' code into our layout; weights in our layout pass unchanged.

    Args:
        state_dict: The weights, as `read_checkpoint` gives them.

    Returns:
        The weights in our layout, and those that were dropped: the parameters that never run in the released network,
        and buffers that ours makes itself.

    Raises:
        ValueError: If the weights are neither ours nor the authors'.
    """
    state_dict = _strip_inner_modules(state_dict)
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith(_BUFFERS) or k.startswith("layers")}
    if "local_stem.0.weight" in state_dict:
        return state_dict, {}
    if "patch_embed.proj.weight" not in state_dict or "fu1.residual.conv1.conv.weight" not in state_dict:
        raise ValueError(_describe_foreign(state_dict))
    num_stages = sum(re.fullmatch(r"fu\d+\.residual\.conv1\.conv\.weight", key) is not None for key in state_dict)
    if num_stages > _MOST_STAGES:
        raise ValueError(f"the weights are of {num_stages} stages, expected at most {_MOST_STAGES}")
    rules = [(re.compile(pattern), ours) for pattern, ours in _RULES]
    for i in range(num_stages):
        for pattern, ours in _STAGE_RULES + (_NEXT_STAGE_RULES if i else _FIRST_STAGE_RULES):
            pattern = pattern.replace("{i}", str(i)).replace("{n}", str(i + 1))
            rules.append((re.compile(pattern), f"stages.{i}.{ours}"))

    converted, dropped = {}, {}
    for key, value in state_dict.items():
        ours = next((pattern.sub(ours, key) for pattern, ours in rules if pattern.match(key)), None)
        if ours is None or key.endswith(_BUFFERS):
            dropped[key] = value
        else:
            # a 1x1 convolution of the authors' is a Linear of ours
            converted[ours] = value.flatten(1) if value.shape[2:] == (1, 1) else value
    return converted, dropped


def _strip_inner_modules(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys without the `module` of a wrapper around a part of the network: HiFuse has no part of this name."""
    stripped = {re.sub(r"(?<=\.)(?:module\.)+", "", key): value for key, value in state_dict.items()}
    if len(stripped) < len(state_dict):
        raise ValueError("the weights are not of one network: some of their keys are the same but for .module")
    return stripped


def checkpoint_filter_fn(state_dict: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """Make a checkpoint fit the model: unwrapped, in our layout, and of the model's architecture.

    timm calls this between reading a checkpoint and loading it. The classifier and the input channels may differ:
    timm adapts both.

    Raises:
        ValueError: If the weights are of another network, or not finite.
    """
    state_dict = unwrap_state_dict(state_dict)  # timm itself knows neither net nor prefixes in every order
    state_dict, _ = convert_state_dict(state_dict)
    check_architecture(state_dict, model.state_dict())
    check_finite(state_dict)
    return state_dict


def check_architecture(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that weights in our layout are those of the network that `expected` is the state dict of.

    The number of classes and of input channels is left to timm, which adapts both.

    Raises:
        ValueError: If they are not; names what they are of, and a key that does not fit.
    """
    ours, theirs = Architecture.of(expected), Architecture.of(state_dict)
    faults = _find_faults(state_dict, expected, theirs)
    found = f"the checkpoint is of {theirs}, the model is {ours} ({faults})"
    if (theirs.branch_attention, theirs.irmlp) != (ours.branch_attention, ours.irmlp):
        raise ValueError(
            f"{found}: create it with the branches, branch_attention and irmlp with which the checkpoint was trained"
        )
    if theirs.dense != ours.dense:
        wanted = "hifuse_*_dense" if theirs.dense else "hifuse_tiny, hifuse_small or hifuse_base"
        raise ValueError(f"{found}: create {theirs.variant or wanted} instead ({wanted} hold such checkpoints)")
    if theirs.recipe != ours.recipe:
        raise ValueError(f"{found}: {_format_call(*theirs.recipe)} is such a network")
    if faults:
        raise ValueError(f"the checkpoint does not fit {ours}: {faults}")


def check_extent(kwargs: dict, architecture: Architecture) -> None:
    """Check, before a network is built for weights, that its arguments make it no larger than the weights are.

    Raises:
        ValueError: If one of them does, by which a small file would fill the memory; names it.
    """
    deepest = max(architecture.local_depths + architecture.global_depths)
    limits = dict(dims=max(architecture.dims), depths=deepest, global_depths=deepest)
    if kwargs.get("branches") != "local":  # which has no windows
        limits.update(window_size=architecture.window_size)
    for name in limits.keys() & kwargs.keys():
        values = kwargs[name] if isinstance(kwargs[name], (list, tuple)) else [kwargs[name]]
        if any(isinstance(value, (int, float)) and value > limits[name] for value in values):
            raise ValueError(
                f"the checkpoint is of {architecture}, and {name} {abbreviate(kwargs[name], 80)} is of a larger "
                f"network: {_format_call(*architecture.recipe)} is such a network"
            )


def _find_faults(
    state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], architecture: Architecture
) -> str:
    """The first keys that are missing, unexpected, or of another shape or kind of number; nothing where all fit."""
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    found = dict(state_dict)
    for key, axis in _FITTED_AXES.items():
        number = architecture.num_classes if key.startswith("head.") else architecture.in_chans
        if number is None:
            shapes.pop(key, None)  # timm makes a new classifier
        elif key in shapes:
            shapes[key] = (*shapes[key][:axis], number, *shapes[key][axis + 1 :])
        else:
            found.pop(key, None)  # a model without classifier, for which timm drops that of the weights
    missing = [key for key in shapes if key not in found]
    if missing and not any(key.endswith(".running_mean") for key in found):
        return "its BatchNorms are folded, as by fuse(), which cannot be undone: save weights before fuse()"
    faults = {
        "missing": missing,
        "unexpected": [key for key in found if key not in shapes],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {shape}"
            for key, shape in shapes.items()
            if key in found and found[key].shape != shape
        ],
        "no floating-point numbers": [
            f"{key} {found[key].dtype}"
            for key in shapes
            if key in found and expected[key].is_floating_point() and found[key].dtype not in _FLOATS
        ],
    }
    return "; ".join(f"{name}: {shorten(keys, 4)}" for name, keys in faults.items() if keys)


def _format_call(name: str, kwargs: dict) -> str:
    return f"timm.create_model({', '.join([repr(name), *(f'{key}={value!r}' for key, value in kwargs.items())])})"


@dataclass(frozen=True)
class Conversion:
    """What `convert_file` did.

    Attributes:
        source: The checkpoint.
        output: The file written.
        checkpoint: What the checkpoint says of its training, its weights left out.
        architecture: The network that the weights are of.
        dropped: What was left out, as `convert_state_dict` gives it.
    """

    source: Path
    output: Path
    checkpoint: Checkpoint
    architecture: Architecture
    dropped: dict[str, torch.Tensor]


def convert_file(
    checkpoint: str | Path, output: str | Path, use_ema: bool | None = None, allow_nonfinite: bool = False
) -> Conversion:
    """Turn a checkpoint of the authors' code, or of ours, into a safetensors file in our layout that loads.

    Args:
        checkpoint: The checkpoint, as `read_checkpoint` takes it.
        output: The safetensors file to write; one that is there is replaced.
        use_ema: Whether to take averaged weights, as for `read_checkpoint`.
        allow_nonfinite: Whether to write NaN and infinite weights too.

    Raises:
        ValueError: If the output's name does not end in .safetensors, or the weights are not those of a HiFuse, do not
            fit the network that they are of, or are not finite.
        OSError: If the checkpoint cannot be read, or the output not be written.
    """
    output = check_output(output)
    loaded = read_checkpoint(checkpoint, use_ema)
    try:
        state_dict, dropped = convert_state_dict(loaded.state_dict)
        architecture = Architecture.of(state_dict)
        name, kwargs = architecture.recipe
        classes = architecture.num_classes or 0
        model = timm.create_model(name, in_chans=architecture.in_chans, num_classes=classes, device="meta", **kwargs)
        check_architecture(state_dict, model.state_dict())
        if not allow_nonfinite:
            check_finite(state_dict)
    except ValueError as e:
        raise ValueError(f"checkpoint {checkpoint}: {e}") from e
    save_weights(state_dict, output)
    return Conversion(Path(checkpoint), output, replace(loaded, state_dict={}), architecture, dropped)


def summarize_conversion(conversion: Conversion) -> str:
    """What `convert_file` found, took and dropped, and the call that loads what it wrote, in lines to read."""
    architecture, dropped = conversion.architecture, conversion.dropped
    lines = [f"{conversion.source} is of {architecture}, with {architecture.num_classes or 'no'} classes"]
    if conversion.checkpoint.has_averaged:
        taken = "averaged (EMA)" if conversion.checkpoint.averaged else "trained"
        lines.append(f"of its averaged (EMA) and its trained weights, the {taken} ones were taken")
    lines.append(f"{len(dropped)} tensors dropped" if dropped else "nothing dropped")
    if dropped:
        lines.append(summarize_dropped(dropped))
    name, kwargs = architecture.recipe
    training_args = conversion.checkpoint.training_args  # for what no weights tell
    trained_with = dict(global_pool=training_args.get("gp") or None) | (training_args.get("model_kwargs") or {})
    told = ((key, trained_with.get(key)) for key in ("shortcut", "global_pool"))
    kwargs |= {key: value for key, value in told if value is not None}
    call = _format_call(name, dict(kwargs, pretrained=True, pretrained_cfg_overlay=dict(file=str(conversion.output))))
    lines.append(f"written to {conversion.output}; {call} loads it")
    return "\n".join(lines)


def summarize_dropped(dropped: dict[str, torch.Tensor]) -> str:
    """What `convert_state_dict` dropped, in lines to read: parameters that never run by module, and buffers."""
    parameters, buffers = Counter(), Counter()
    for key, value in dropped.items():
        module = re.sub(r"(?<=layers)\d+|(?<=blocks\.)\d+|(?<=fu)\d+", "*", re.sub(r"(\.conv|\.bn)?\.\w+$", "", key))
        (buffers if key.endswith(_BUFFERS + _BN_BUFFERS) else parameters)[module] += value.numel()
    lines = [f"parameters that never run: {sum(parameters.values()):,}"]
    lines += [f"  {module}: {count:,}" for module, count in parameters.items()]
    lines += [f"buffers that go with them, or that the network makes itself: {sum(buffers.values()):,} values"]
    return "\n".join(lines)
