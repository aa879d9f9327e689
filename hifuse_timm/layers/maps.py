"""Feature maps and their tokens: views, padding, LayerNorm, patch merging, Linear with norm and activation.

Maps are (B, C, H, W) tensors, kept in channels_last memory: LayerNorm, attention and Linear work on their (B, H*W, C)
view, the tokens, convolutions on the maps themselves, and no copy lies between the two. A (B, H, W, C) view would do as
well, but not for torch.compile, which takes whatever has four dimensions for a (B, C, H, W) map and lays it out as if H
were its channels.
"""

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import fast_layer_norm
from timm.models.swin_transformer import PatchMerging
from torch import nn

from . import onednn
from .linear import fold_norm_after, linear_act

__all__ = [
    "LayerNorm2d",
    "LinearNormAct",
    "PatchMerging2d",
    "concatenate",
    "pad_map",
    "pad_tokens",
    "to_map",
    "to_tokens",
]


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """A map, (B, C, H, W), as its tokens, (B, H*W, C); the same memory where the map is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens, (B, H*W, C), as the (B, C, H, W) map of the same memory."""
    # by way of a dimension of 1, since unflatten(transpose(x)) of a single image has strides that are not channels_last
    return x.unflatten(1, (height, width, 1)).permute(0, 4, 1, 2, 3).squeeze(4)


@torch.fx.wrap
def concatenate(maps: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate maps, (B, C_i, H, W), along their channels."""
    if not torch.jit.is_scripting():
        _keep_gradients_whole(maps)
    return torch.cat(maps, dim=1)


def _keep_gradients_whole(maps: list[torch.Tensor]) -> None:
    # the gradient of a part is a slice of the whole's, its pixels far apart, over which a CPU's BatchNorm goes back ten
    # times as slowly in bfloat16 as over a map
    if onednn.is_differentiated_eagerly(maps[0]):
        for x in maps:
            if x.requires_grad:
                x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))


@torch.fx.wrap
def pad_map(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad a map, (B, C, H, W), with zeros at the bottom and right to the next multiple of H and of W."""
    pad_height, pad_width = _fill(x.shape[2], multiple), _fill(x.shape[3], multiple)
    if pad_height > 0 or pad_width > 0:
        x = F.pad(x, (0, pad_width, 0, pad_height))
    return x


@torch.fx.wrap
def pad_tokens(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad the tokens of a map, (B, H, W, 1, C), with zeros at the bottom and right to the next multiple of H and W."""
    pad_height, pad_width = _fill(x.shape[1], multiple), _fill(x.shape[2], multiple)
    if pad_height > 0 or pad_width > 0:
        x = F.pad(x, (0, 0, 0, 0, 0, pad_width, 0, pad_height))
    return x


def _fill(size: int, multiple: int) -> int:
    # -size % multiple, on whose negative number torch.compile of PyTorch 2.6 fails where the size is a symbol
    return multiple - 1 - (size - 1) % multiple


class LayerNorm2d(timm.layers.LayerNorm2d):
    """timm's LayerNorm over the channels of a map, by way of its tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        height, width = x.shape[2], x.shape[3]
        x = to_tokens(x)
        if self._fast_norm:
            x = fast_layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return to_map(x, height, width)


class PatchMerging2d(PatchMerging):
    """timm's patch merging, on maps of any size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, dim, H, W); the result: (B, out_dim, H/2, W/2), rounded up."""
        x = pad_tokens(to_tokens(x).unflatten(1, (x.shape[2], x.shape[3], 1)), 2)
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x.view(-1, height, 2, width, 2, self.dim)
        x = torch.stack([x[:, :, 0, :, 0], x[:, :, 1, :, 0], x[:, :, 0, :, 1], x[:, :, 1, :, 1]], dim=3)
        x = self.norm(x.flatten(1, 2).flatten(2))  # B H/2*W/2 4*dim
        x = self.reduction(x) if torch.jit.is_scripting() else linear_act(x, self.reduction)
        return to_map(x, height, width)


class LinearNormAct(nn.Module):
    """1x1 convolution, BatchNorm and activation, like timm's ConvNormAct, but with a Linear over the channels.

    On channels_last maps the two compute the same. The Linear is faster where a CPU would have to bring the weights of
    the convolution into its own layout at every call: three times at batch size 1 in the last IRMLP.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        act_layer: type[nn.Module] = nn.Identity,
        device=None,
        dtype=None,
    ):
        """
        Args:
            in_chs: Number of channels in.
            out_chs: Number of channels out.
            act_layer: Activation after the norm.
        """
        dd = dict(device=device, dtype=dtype)
        super().__init__()
        self.fc = nn.Linear(in_chs, out_chs, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.act = act_layer()

    def fuse(self) -> "LinearAct":
        """Fold the BatchNorm into the Linear, for inference."""
        return LinearAct(fold_norm_after(self.fc, self.bn), self.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, in_chs, H, W); the result: (B, out_chs, H, W)."""
        tokens = to_tokens(x)
        tokens = self.fc(tokens) if torch.jit.is_scripting() else linear_act(tokens, self.fc)
        return self.act(self.bn(to_map(tokens, x.shape[2], x.shape[3])))


class LinearAct(nn.Module):
    """1x1 convolution and activation, by a Linear over the channels: a LinearNormAct for inference."""

    def __init__(self, fc: nn.Linear, act: nn.Module):
        """
        Args:
            fc: The Linear.
            act: The activation.
        """
        super().__init__()
        self.fc = fc
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, in_chs, H, W); the result: (B, out_chs, H, W)."""
        tokens = to_tokens(x)
        tokens = self.act(self.fc(tokens)) if torch.jit.is_scripting() else linear_act(tokens, self.fc, self.act)
        return to_map(tokens, x.shape[2], x.shape[3])
