"""Feature maps and their positions: views, padding, LayerNorm, patch merging, Linear with norm and activation."""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, fast_layer_norm
from timm.models.swin_transformer import PatchMerging
from torch import nn

from .linear import Linear, LinearGelu, fold_norm_after, make_linear

__all__ = ["LinearNormAct", "MapNorm", "MapPatchMerging", "fill", "pad_positions", "to_map", "to_positions"]


def fill(size: int, multiple: int) -> int:
    # -size % multiple, on whose negative number torch.compile of PyTorch 2.6 fails where the size is a symbol
    return multiple - 1 - (size - 1) % multiple


def to_positions(x: torch.Tensor) -> torch.Tensor:
    """A map, (B, C, H, W), as (B, H*W, C); the same memory where the map is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions, (B, H*W, C), as the (B, C, H, W) map of the same memory."""
    # by way of a dimension of 1, since unflatten(transpose(x)) of a single image has strides that are not channels_last
    return x.unflatten(1, (height, width, 1)).permute(0, 4, 1, 2, 3).squeeze(4)


@torch.fx.wrap
def pad_positions(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad positions, (B, H, W, 1, C), with zeros at the bottom and right to the next multiple of H and of W."""
    pad_height, pad_width = fill(x.shape[1], multiple), fill(x.shape[2], multiple)
    if pad_height > 0 or pad_width > 0:
        x = F.pad(x, (0, 0, 0, 0, 0, pad_width, 0, pad_height))
    return x


class MapNorm(LayerNorm2d):
    """timm's LayerNorm over the channels of a map, by way of its positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), and so is the result."""
        height, width = x.shape[2], x.shape[3]
        x = to_positions(x)
        if self._fast_norm:
            x = fast_layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return to_map(x, height, width)


class MapPatchMerging(PatchMerging):
    """timm's patch merging, on (B, C, H, W) maps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reduction = make_linear(self.reduction.weight, None, Linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, dim, H, W); the result: (B, out_dim, H/2, W/2), rounded up."""
        x = pad_positions(to_positions(x).unflatten(1, (x.shape[2], x.shape[3], 1)), 2)
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x.view(-1, height, 2, width, 2, self.dim)
        x = torch.stack([x[:, :, 0, :, 0], x[:, :, 1, :, 0], x[:, :, 0, :, 1], x[:, :, 1, :, 1]], dim=3)
        x = self.reduction(self.norm(x.flatten(1, 2).flatten(2)))  # B H/2*W/2 out_dim
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
        self.fc = Linear(in_chs, out_chs, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.act = act_layer()

    def fuse(self) -> "LinearNormAct":
        """Fold the BatchNorm into the Linear, for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.fc, self.bn = fold_norm_after(self.fc, self.bn), nn.Identity()
            if isinstance(self.act, nn.GELU):
                self.fc, self.act = make_linear(self.fc.weight, self.fc.bias, LinearGelu), nn.Identity()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, in_chs, H, W); the result: (B, out_chs, H, W)."""
        height, width = x.shape[2], x.shape[3]
        return self.act(self.bn(to_map(self.fc(to_positions(x)), height, width)))
