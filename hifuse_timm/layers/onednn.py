"""Matrix products of CPUs through oneDNN: when it serves, packed weights, operators and gradients.

oneDNN takes GELU into a product, where it costs nothing, and is up to twice as fast as PyTorch's BLAS, MKL, on CPUs
that are not Intel's. What was tried, measured and dropped is in benchmarks/README.md.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "chunk_tokens",
    "has_hooks",
    "is_differentiated_eagerly",
    "is_plain_tensor",
    "is_transformed",
    "linear",
    "mlp",
    "pack_weight",
    "serves",
    "serves_compiled",
    "serves_eagerly",
]

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# PyTorch before 2.7 does not tell torch.export, which takes no operators of ours, from torch.compile
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

# glibc hands memory from 32 MiB up back to the system at once, and asking for it again costs a CPU more than the
# products that fill it
_CHUNK_BYTES = 30 * 2**20
# a weight: the tensor that it was, with its version, and that in the layout that oneDNN likes best
_packed_weights = WeakTensorKeyDictionary()


def serves(x: torch.Tensor) -> bool:
    """Whether products of x go through oneDNN; whoever exports, traces, transforms or counts gets plain operators."""
    return serves_compiled(x) or serves_eagerly(x)


def serves_compiled(x: torch.Tensor) -> bool:
    """Whether what is done with x is compiled for inference on a CPU in float32."""
    return torch.compiler.is_compiling() and not _is_exporting() and not torch.is_grad_enabled() and _is_float_on_cpu(x)


def serves_eagerly(x: torch.Tensor) -> bool:
    """Whether what is done with x is run at once, on a CPU in float32, and neither traced nor intercepted."""
    return _is_eager(x) and _is_float_on_cpu(x)


def is_differentiated_eagerly(x: torch.Tensor) -> bool:
    """Whether what is done with x is run at once on a CPU, for its gradient, and neither traced nor intercepted."""
    return torch.is_grad_enabled() and _is_eager(x) and x.is_cpu


def _is_eager(x: torch.Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and is_plain_tensor(x)  # and no proxy of torch.fx
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not is_transformed()
    )


def is_plain_tensor(x: torch.Tensor) -> bool:
    """Whether a tensor is none of a class of its own, as quantized weights are, which knows how to multiply itself."""
    return type(x) in (torch.Tensor, nn.Parameter)


def is_transformed() -> bool:
    """Whether torch.func transforms what is run, or forward-mode differentiation follows it."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody waits for what a module, or any module, takes or gives."""
    # spelled out, since this is asked some hundred times for an image
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
    )


def _is_float_on_cpu(x: torch.Tensor) -> bool:
    return _HAS_ONEDNN and x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> torch.Tensor:
    """A Linear, or the exact GELU of one, where oneDNN serves.

    In inference a weight that requires no gradient is kept in oneDNN's own layout as well, at twice its memory.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features), None for none.
        gelu: Whether to apply GELU.

    Returns:
        (..., out_features).
    """
    if torch.compiler.is_compiling():
        return onednn_linear(x, weight, bias, gelu, not weight.requires_grad)
    if torch.is_grad_enabled():
        x = _Linear.apply(x, weight, bias)
        return nn.functional.gelu(x) if gelu else x
    return _linear(x, weight, bias, gelu, not weight.requires_grad)


def mlp(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
) -> torch.Tensor:
    """A Linear, GELU and a second Linear, compiled into one operator that takes the tokens chunk by chunk.

    Args:
        x: Tokens, (B, N, in_features).
        weight1: (hidden_features, in_features).
        bias1: (hidden_features), None for none.
        weight2: (out_features, hidden_features).
        bias2: (out_features), None for none.

    Returns:
        (B, N, out_features).
    """
    return onednn_mlp(x, weight1, bias1, weight2, bias2, not (weight1.requires_grad or weight2.requires_grad))


def chunk_tokens(x: torch.Tensor, hidden_features: int) -> tuple[torch.Tensor, ...]:
    """Cut the tokens of all images into chunks of which an MLP's hidden map is a small one.

    Args:
        x: Tokens, (B, N, C).
        hidden_features: Width of the hidden map.

    Returns:
        The chunks, (tokens, C) each.
    """
    return x.flatten(0, 1).chunk(-(-x[..., 0].numel() * hidden_features * x.element_size() // _CHUNK_BYTES))


@torch.library.custom_op("hifuse_timm::linear", mutates_args=())
def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool, pack: bool
) -> torch.Tensor:
    """`linear` as an operator, which torch.compile leaves whole where it would call the BLAS."""
    return _linear(x, weight, bias, gelu, pack)


@torch.library.custom_op("hifuse_timm::mlp", mutates_args=())
def onednn_mlp(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    pack: bool,
) -> torch.Tensor:
    """`mlp` as an operator."""
    chunks = [
        _linear(_linear(chunk, weight1, bias1, True, pack), weight2, bias2, False, pack)
        for chunk in chunk_tokens(x, weight1.shape[0])
    ]
    return torch.cat(chunks).unflatten(0, x.shape[:2])


@onednn_linear.register_fake
def _(x, weight, bias, gelu, pack):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@onednn_mlp.register_fake
def _(x, weight1, bias1, weight2, bias2, pack):
    return x.new_empty(*x.shape[:-1], weight2.shape[0])


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False, pack: bool = False
) -> torch.Tensor:
    weight = pack_weight(weight) if pack else weight
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a Linear in oneDNN's own layout, into which it is brought once, and again after each change.

    oneDNN otherwise does so at every call, which is up to a tenth of a network's time (benchmarks/README.md). It is for
    weights that require no gradient: optimizers change the others, some (`AdamW(fused=True)`) without counting it. What
    PyTorch cannot see is a change through memory shared with NumPy.
    """
    if weight.is_inference():  # changes of which are not counted
        return weight
    was, version, packed = _packed_weights.get(weight, (None, None, None))
    if was is None or version != weight._version or was.data_ptr() != weight.data_ptr():
        # the memory of before stays taken, so that none that `.data` brings can have its address
        was = weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(was)
        _packed_weights[weight] = (was, weight._version, packed)
    return packed


class _Linear(torch.autograd.Function):
    """A Linear with its gradients through oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _matmul_t(grad, weight.t())
        grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:
            # either of the two is copied to be transposed: better the smaller, where the result is small as well
            if weight.shape[0] > weight.shape[1] and x.shape[0] > weight.shape[1]:
                grad_weight = _matmul_t(x.t(), grad.t()).t()
            else:
                grad_weight = _matmul_t(grad.t(), x.t())
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


def _matmul_t(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T through oneDNN, for gradients that are not differentiated again."""
    if torch.is_grad_enabled():
        return a @ b.t()
    return _linear(a, b, None)
