"""Linear layers that are fast on CPUs too, and a BatchNorm folded into one."""

import torch
import torch.nn.functional as F
from torch import nn

from .onednn import linear

__all__ = ["Linear", "LinearGelu", "fold_norm_after", "fold_norm_before", "make_linear"]

torch.fx.wrap("linear")  # by its name in this module, where it is called


class Linear(nn.Linear):
    """Linear over the last dimension, fast on CPUs too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pack = False

    def fuse(self) -> "Linear":
        """Have oneDNN keep the weight in its own layout, for inference on a CPU."""
        self.pack = True
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features); the result: (..., out_features)."""
        return linear(x, self.weight, self.bias, pack=self.pack)


class LinearGelu(Linear):
    """Linear followed by the exact GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features); the result: (..., out_features)."""
        return linear(x, self.weight, self.bias, gelu=True, pack=self.pack)


@torch.no_grad()
def fold_norm_after(fc: nn.Linear, norm: nn.BatchNorm2d) -> nn.Linear:
    """Fold a BatchNorm, with its running statistics, into the Linear before it."""
    fused = nn.utils.fuse_linear_bn_weights(
        fc.weight, fc.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return make_linear(*fused, type(fc))


@torch.no_grad()
def fold_norm_before(norm: nn.BatchNorm2d, fc: nn.Linear) -> nn.Linear:
    """Fold a BatchNorm, with its running statistics, into the Linear after it."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return make_linear(fc.weight * scale, F.linear(shift, fc.weight, fc.bias), type(fc))


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, layer: type[nn.Linear]) -> nn.Linear:
    fc = layer(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    fc.weight, fc.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return fc
