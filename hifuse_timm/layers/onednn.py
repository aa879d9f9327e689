"""Matrix products of CPUs through oneDNN: when it serves, packed weights, operators and gradients.

oneDNN takes GELU into a product, where it costs nothing, and is up to twice as fast as PyTorch's BLAS, MKL, on CPUs
that are not Intel's. In bfloat16 PyTorch's products are oneDNN's as well, but with the GELU, the bias and the layout of
the weights in passes of their own. What was tried, measured and dropped is in benchmarks/README.md.

A product is computed in the type that its input has, or gets from autocast; biases stay as they are, since oneDNN adds
one of float32 to a product in bfloat16 before it rounds.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "chunk_tokens",
    "fits",
    "has_hooks",
    "is_differentiated_eagerly",
    "is_plain_tensor",
    "is_traced",
    "is_transformed",
    "linear",
    "lower_weight",
    "mlp",
    "pack_weight",
    "product_dtype",
    "serves",
    "serves_compiled",
    "serves_eagerly",
]

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# oneDNN itself takes bfloat16 on every CPU with AVX-512, and converts each number where it has no instructions for it
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
# PyTorch before 2.7 does not tell torch.export, which takes no operators of ours, from torch.compile
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

# glibc hands memory from 32 MiB up back to the system at once, and asking for it again costs a CPU more than the
# products that fill it
_CHUNK_BYTES = 30 * 2**20
# in bfloat16, where products are fast, a copy pays from here on: each of its numbers is multiplied that often
_TRANSPOSED_WIDTH = 1024
# a weight: the tensor that it was, with its version, and that in the layout that oneDNN likes best, by type
_packed_weights = WeakTensorKeyDictionary()


def serves(x: torch.Tensor) -> bool:
    """Whether products of x go through oneDNN; whoever exports, traces, transforms or counts gets plain operators."""
    return serves_compiled(x) or serves_eagerly(x)


def serves_compiled(x: torch.Tensor) -> bool:
    """Whether what is done with x is compiled for inference on a CPU, in a type that oneDNN takes there."""
    return (
        torch.compiler.is_compiling()
        and not _is_exporting()
        and not torch.is_grad_enabled()
        and product_dtype(x) is not None
    )


def serves_eagerly(x: torch.Tensor) -> bool:
    """Whether what is done with x is run at once on a CPU, in a type that oneDNN takes there, and not intercepted."""
    return _is_eager(x) and product_dtype(x) is not None


def product_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The type in which oneDNN multiplies x: float32, or bfloat16 where the CPU has instructions for it, else None."""
    if not (_HAS_ONEDNN and x.is_cpu):
        return None
    if not torch.is_autocast_enabled("cpu"):
        dtype = x.dtype
    else:
        is_cast = x.dtype in (torch.float32, torch.bfloat16) and torch.get_autocast_dtype("cpu") == torch.bfloat16
        dtype = torch.bfloat16 if is_cast else None
    return dtype if dtype == torch.float32 or (dtype == torch.bfloat16 and _HAS_BFLOAT16) else None


def fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a Linear takes x with this weight and bias, rather than fail for their types."""
    types = (torch.float32, torch.bfloat16) if torch.is_autocast_enabled("cpu") else (x.dtype,)
    return weight.dtype in types and (bias is None or bias.dtype == weight.dtype)


def is_differentiated_eagerly(x: torch.Tensor) -> bool:
    """Whether what is done with x is run at once on a CPU, for its gradient, and neither traced nor intercepted."""
    return torch.is_grad_enabled() and _is_eager(x) and x.is_cpu


def _is_eager(x: torch.Tensor) -> bool:
    # a plain tensor is no proxy of torch.fx either
    return not is_traced() and is_plain_tensor(x) and not is_in_torch_dispatch_mode()


def is_plain_tensor(x: torch.Tensor) -> bool:
    """Whether a tensor is none of a class of its own, as quantized weights are, which knows how to multiply itself."""
    return type(x) in (torch.Tensor, nn.Parameter)


def is_transformed() -> bool:
    """Whether torch.func transforms what is run, or forward-mode differentiation follows it."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether what is run is compiled, exported, traced or transformed, and not just run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


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


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gelu: bool = False,
    lower: torch.Tensor | None = None,
) -> torch.Tensor:
    """A Linear, or the exact GELU of one, where oneDNN serves.

    In inference a weight that requires no gradient is kept in oneDNN's own layout as well, at twice its memory.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features), None for none.
        gelu: Whether to apply GELU.
        lower: What lower_weight gave, where several calls share it.

    Returns:
        (..., out_features).
    """
    x = x.to(product_dtype(x))
    if torch.compiler.is_compiling():
        return onednn_linear(x, weight, bias, gelu, not weight.requires_grad)
    if torch.is_grad_enabled():
        x = _Linear.apply(x, weight, bias, lower_weight(x, weight) if lower is None else lower)
        return nn.functional.gelu(x) if gelu else x
    if weight.requires_grad and weight.dtype != x.dtype:  # autocast itself keeps what it makes of such weights
        x = nn.functional.linear(x, weight, bias)
        return nn.functional.gelu(x) if gelu else x
    return _linear(x, _prepare(weight, x.dtype, not weight.requires_grad), bias, gelu)


def lower_weight(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """A weight of float32 in the type to which autocast brings it for a product with x, None where that is its own."""
    dtype = product_dtype(x)
    return None if weight.dtype == dtype else weight.detach().to(dtype)


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
    return _linear(x, _prepare(weight, x.dtype, pack), bias, gelu)


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
    weight1, weight2 = _prepare(weight1, x.dtype, pack), _prepare(weight2, x.dtype, pack)
    chunks = [
        _linear(_linear(chunk, weight1, bias1, True), weight2, bias2) for chunk in chunk_tokens(x, weight1.shape[0])
    ]
    return torch.cat(chunks).unflatten(0, x.shape[:2])


@onednn_linear.register_fake
def _(x, weight, bias, gelu, pack):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@onednn_mlp.register_fake
def _(x, weight1, bias1, weight2, bias2, pack):
    return x.new_empty(*x.shape[:-1], weight2.shape[0])


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def _prepare(weight: torch.Tensor, dtype: torch.dtype, pack: bool) -> torch.Tensor:
    return pack_weight(weight, dtype) if pack else weight.to(dtype)


def pack_weight(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a Linear in oneDNN's own layout, into which it is brought once, and again after each change.

    oneDNN otherwise does so at every call, which is up to a tenth of a network's time (benchmarks/README.md). It is for
    weights that require no gradient: optimizers change the others, some (`AdamW(fused=True)`) without counting it. What
    PyTorch cannot see is a change through memory shared with NumPy.

    Args:
        weight: (out_features, in_features).
        dtype: Type of the result, which under autocast is not the weight's own.
    """
    if weight.is_inference():  # changes of which are not counted
        return weight.to(dtype)
    was, version, packed = _packed_weights.get(weight, (None, None, None))
    if was is None or version != weight._version or was.data_ptr() != weight.data_ptr():
        # the memory of before stays taken, so that none that `.data` brings can have its address
        was, packed = weight.detach(), {}
        _packed_weights[weight] = (was, weight._version, packed)
    if dtype not in packed:
        packed[dtype] = torch.ops.mkldnn._reorder_linear_weight(was.to(dtype))
    return packed[dtype]


class _Linear(torch.autograd.Function):
    """A Linear with its gradients through oneDNN, in the type of its input."""

    @staticmethod
    def forward(ctx, x, weight, bias, lower):
        ctx.save_for_backward(x, weight, lower)
        return _linear(x, weight if lower is None else lower, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, lower = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # the lower one is detached, and the gradient may be differentiated by the weight
            lower = weight.to(x.dtype) if lower is None or torch.is_grad_enabled() else lower
            grad_x = _matmul_t(grad, lower.t())
        grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad, x).to(weight.dtype, memory_format=torch.contiguous_format)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)  # added up in float32, and brought to the bias's type by autograd
        return grad_x, grad_weight, grad_bias, None


def _weight_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad.T @ x for (tokens, out_features) and (tokens, in_features), the narrower of the two copied transposed."""
    widths = grad.shape[1], x.shape[1]
    if x.dtype == torch.bfloat16 and max(widths) < _TRANSPOSED_WIDTH:
        return grad.t() @ x
    # better the smaller, where the result, which then comes out transposed, is small as well
    if widths[0] > widths[1] and x.shape[0] > widths[1]:
        return _matmul_t(x.t(), grad.t()).t()
    return _matmul_t(grad.t(), x.t())


def _matmul_t(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T through oneDNN, for gradients that are not differentiated again."""
    if torch.is_grad_enabled():
        return a @ b.t()
    return _linear(a, b, None)
