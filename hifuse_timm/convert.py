"""Which network some weights are of, and the layout of the authors' code turned into ours."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from .checkpoint import unwrap_state_dict
from .errors import shorten

__all__ = [
    "Architecture",
    "check_architecture",
    "checkpoint_filter_fn",
    "convert_state_dict",
    "summarize_dropped",
]

# Blocks per stage of the variants, which share widths and heads (Section 3.2 and Table 1).
_VARIANT_DEPTHS = {"hifuse_tiny": (2, 2, 2, 2), "hifuse_small": (2, 2, 6, 2), "hifuse_base": (2, 2, 18, 2)}

_VARIANT_DIMS = (96, 192, 384, 768)

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
            ValueError: If the state dict is not one of HiFuse.
        """
        dims, local_depths, global_depths = [], [], []
        while (key := f"stages.{len(dims)}.local_blocks.0.fc.weight") in state_dict:
            dims.append(state_dict[key].shape[0])
            for branch, depths in (("local", local_depths), ("global", global_depths)):
                pattern = re.compile(rf"stages\.{len(dims) - 1}\.{branch}_blocks\.(\d+)\.fc\.weight")
                depths.append(sum(pattern.fullmatch(k) is not None for k in state_dict))
        if not dims or "local_stem.0.weight" not in state_dict:
            raise ValueError(f"the weights are not those of a HiFuse: their keys are {shorten(state_dict, 4)}")
        head = state_dict.get("head.fc.weight")
        irmlp_conv = state_dict.get("stages.0.fusion.irmlp.conv.weight")
        return cls(
            dims=tuple(dims),
            local_depths=tuple(local_depths),
            global_depths=tuple(global_depths),
            dense=irmlp_conv is not None and irmlp_conv.shape[1] > 1,
            in_chans=state_dict["local_stem.0.weight"].shape[1],
            num_classes=None if head is None else head.shape[0],
            branch_attention="stages.0.fusion.spatial_attn.conv.conv.weight" in state_dict
            or "stages.0.fusion.spatial_attn.conv.weight" in state_dict,  # folded
            irmlp=irmlp_conv is not None,
        )

    @property
    def variant(self) -> str | None:
        """Name of the registered variant of these widths, depths and parts, None where there is none."""
        if not (self.branch_attention and self.irmlp):
            return None
        for name, depths in _VARIANT_DEPTHS.items():
            if self.dims == _VARIANT_DIMS and self.local_depths == self.global_depths == depths:
                return name + ("_dense" if self.dense else "")
        return None

    def __str__(self) -> str:
        kind = ("dense" if self.dense else "depthwise") + " IRMLP" if self.irmlp else "no IRMLP"
        if self.variant:
            return f"{self.variant} ({kind})"
        layout = f"dims {self.dims}, depths {self.local_depths}"
        if not any(self.global_depths):
            return f"a HiFuse of {layout}, local branch alone"
        attention = "" if self.branch_attention else "no branch attention, "
        return f"a HiFuse of {layout} local and {self.global_depths} global, {attention}{kind}"


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
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith(_BUFFERS) or k.startswith("layers")}
    if "local_stem.0.weight" in state_dict:
        return state_dict, {}
    if "patch_embed.proj.weight" not in state_dict or "fu1.residual.conv1.conv.weight" not in state_dict:
        raise ValueError(f"the weights are not those of a HiFuse: their keys are {shorten(state_dict, 4)}")
    num_stages = sum(re.fullmatch(r"fu\d+\.residual\.conv1\.conv\.weight", key) is not None for key in state_dict)
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


def checkpoint_filter_fn(state_dict: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """Make a checkpoint fit the model: unwrapped, in our layout, and of the model's architecture.

    timm calls this between reading a checkpoint and loading it. The classifier and the input channels may differ:
    timm adapts both.

    Raises:
        ValueError: If the weights are of another network.
    """
    state_dict = unwrap_state_dict(state_dict)  # timm itself knows neither net nor prefixes in every order
    state_dict, _ = convert_state_dict(state_dict)
    check_architecture(state_dict, model.state_dict())
    return state_dict


def check_architecture(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that weights in our layout are those of the network that `expected` is the state dict of.

    Classifier and input channels are left to timm, which adapts them.

    Raises:
        ValueError: If they are not; names what they are of.
    """
    ours, theirs = Architecture.of(expected), Architecture.of(state_dict)
    if (theirs.branch_attention, theirs.irmlp) != (ours.branch_attention, ours.irmlp):
        raise ValueError(
            f"the checkpoint is of {theirs}, the model is {ours}: create it with the branches, branch_attention and "
            "irmlp with which the checkpoint was trained"
        )
    if theirs.dense != ours.dense:
        wanted = "hifuse_*_dense" if theirs.dense else "hifuse_tiny, hifuse_small or hifuse_base"
        raise ValueError(
            f"the checkpoint is of {theirs}, the model is {ours}: create {theirs.variant or wanted} instead "
            f"({wanted} hold such checkpoints)"
        )
    if (theirs.dims, theirs.local_depths, theirs.global_depths) != (ours.dims, ours.local_depths, ours.global_depths):
        raise ValueError(f"the checkpoint is of {theirs}, the model is {ours}")
    adapted = ("head.fc.", "local_stem.0.weight", "global_stem.0.weight")
    missing = [k for k in expected if k not in state_dict and not k.startswith(adapted)]
    unexpected = [k for k in state_dict if k not in expected and not k.startswith(adapted)]
    reshaped = [
        f"{k} {tuple(state_dict[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state_dict and state_dict[k].shape != v.shape and not k.startswith(adapted)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    found = "; ".join(f"{name}: {shorten(keys, 4)}" for name, keys in faults.items() if keys)
    if missing and not [key for key in state_dict if key.endswith(".running_mean")]:
        found = "its BatchNorms are folded, as by fuse(), which cannot be undone: save weights before fuse()"
    if found:
        raise ValueError(f"the checkpoint does not fit {ours}: {found}")


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
