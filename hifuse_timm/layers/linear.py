"""Linear layers and what stands beside them: the activation behind, BatchNorms folded in, an MLP over many tokens.

The network's layers are PyTorch's own. How a product is computed is decided here, and only for layers that compute what
their type says: no subclass, hook, adapter, parametrization or weight of a class of its own is passed by.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import onednn

__all__ = ["fold_norm_after", "fold_norm_before", "linear_act", "make_linear", "mlp"]


def linear_act(x: torch.Tensor, fc: nn.Module, act: nn.Module | None = None) -> torch.Tensor:
    """act(fc(x)), on a CPU in float32 or bfloat16 through oneDNN.

    Args:
        x: (..., in_features).
        fc: The Linear, or whatever stands in its place.
        act: The activation, None for none.

    Returns:
        (..., out_features).
    """
    if onednn.serves(x) and _is_plain_linear(fc, x):
        gelu = _is_plain_gelu(act)
        x = onednn.linear(x, fc.weight, fc.bias, gelu)
        return x if gelu or act is None else act(x)
    x = fc(x)
    return x if act is None else act(x)


def mlp(x: torch.Tensor, fc1: nn.Module, act: nn.Module, fc2: nn.Module, checkpointing: bool = False) -> torch.Tensor:
    """fc2(act(fc1(x))), on a CPU chunk by chunk, so that each hidden map is a small one.

    In chunks the 1x1 layers of the IRMLP are 1.2 to 1.5 times as fast on a CPU (benchmarks/README.md).

    Args:
        x: Tokens, (B, N, in_features).
        fc1: The first Linear.
        act: The activation behind it.
        fc2: The second Linear.
        checkpointing: Whether chunks are computed again one by one in the backward pass instead of kept.

    Returns:
        (B, N, out_features).
    """
    if not (onednn.serves(x) and _is_plain_linear(fc1, x) and _is_plain_gelu(act) and _is_plain_linear(fc2, x)):
        return linear_act(linear_act(x, fc1, act), fc2)
    x = x.to(onednn.product_dtype(x))
    if torch.compiler.is_compiling():
        return onednn.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    is_differentiated = torch.is_grad_enabled()
    if is_differentiated and fc1.weight.dtype == torch.bfloat16:
        chunks = (x,)  # the gradients of chunks would be added up in bfloat16
    else:
        chunks = onednn.chunk_tokens(x, fc1.out_features)
    if len(chunks) == 1:
        return linear_act(linear_act(x, fc1, act), fc2)
    lower1, lower2 = (onednn.lower_weight(x, fc.weight) if is_differentiated else None for fc in (fc1, fc2))

    def run(tokens: torch.Tensor) -> torch.Tensor:
        hidden = onednn.linear(tokens, fc1.weight, fc1.bias, True, lower1)
        return onednn.linear(hidden, fc2.weight, fc2.bias, False, lower2)

    if checkpointing and is_differentiated:
        chunks = [checkpoint(run, chunk, use_reentrant=False) for chunk in chunks]
    else:
        chunks = [run(chunk) for chunk in chunks]
    return torch.cat(chunks).unflatten(0, x.shape[:2])


def _is_plain_linear(fc: nn.Module, x: torch.Tensor) -> bool:
    return _is_plain(fc, nn.Linear) and onednn.is_plain_tensor(fc.weight) and onednn.fits(x, fc.weight, fc.bias)


def _is_plain_gelu(act: nn.Module | None) -> bool:
    return act is not None and _is_plain(act, nn.GELU) and act.approximate == "none"


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of exactly this type, and nothing but its own forward runs where it is called."""
    return type(layer) is kind and "forward" not in layer.__dict__ and not onednn.has_hooks(layer)


@torch.no_grad()
def fold_norm_after(fc: nn.Linear, norm: nn.BatchNorm2d) -> nn.Linear:
    """Fold a BatchNorm, with its running statistics, into the Linear before it."""
    fused = nn.utils.fuse_linear_bn_weights(
        fc.weight, fc.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return make_linear(*fused)


@torch.no_grad()
def fold_norm_before(norm: nn.BatchNorm2d, fc: nn.Linear) -> nn.Linear:
    """Fold a BatchNorm, with its running statistics, into the Linear after it."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return make_linear(fc.weight * scale, F.linear(shift, fc.weight, fc.bias))


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear for inference, of a weight, (out_features, in_features), and a bias, (out_features) or None."""
    fc = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    fc.weight = nn.Parameter(weight.detach(), requires_grad=False)
    fc.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return fc
