"""Products through oneDNN on CPUs: operators, packed weights, gradients, and when they serve."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "count_mlp_pieces",
    "is_compiled_for_cpu",
    "is_plain_tensor",
    "linear",
    "onednn_linear",
    "onednn_mlp",
    "pack_weight",
    "runs_eagerly_on_cpu",
]

_HAS_ONEDNN = torch.backends.mkldnn.is_available()

# PyTorch before 2.7 does not tell torch.export, which takes no operators of ours, from torch.compile
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

# glibc hands memory from 32 MiB up back to the system at once, and asking for it again costs a CPU more than the
# products that fill it
_PIECE_BYTES = 30 * 2**20

# a weight: which state of it, and that in the layout that oneDNN likes best
_packed_weights = WeakTensorKeyDictionary()


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a Linear in oneDNN's own layout, into which it is brought once, and again after each change.

    oneDNN otherwise does so at every call, which is up to a tenth of a network's time (benchmarks/README.md). A change
    in place through `.data` is one that PyTorch does not count.
    """
    if weight.is_inference():  # changes of which are not counted
        return weight
    state = (weight._version, weight.data_ptr())
    packed_state, packed = _packed_weights.get(weight, (None, None))
    if packed_state != state:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _packed_weights[weight] = (state, packed)
    return packed


def _linear_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False, pack: bool = False
) -> torch.Tensor:
    weight = pack_weight(weight) if pack else weight
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


@torch.library.custom_op("hifuse_timm::linear", mutates_args=())
def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool, pack: bool
) -> torch.Tensor:
    """A Linear, or the GELU of one, through oneDNN; arguments and result as for `linear`."""
    return _linear_pointwise(x, weight, bias, gelu, pack)


@torch.library.custom_op("hifuse_timm::mlp", mutates_args=())
def onednn_mlp(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    pack: bool,
) -> torch.Tensor:
    """A Linear, GELU and a second Linear through oneDNN, (B, N, in) to (B, N, out), piece by piece."""
    pieces = [
        _linear_pointwise(_linear_pointwise(piece, weight1, bias1, gelu=True, pack=pack), weight2, bias2, pack=pack)
        for piece in x.flatten(0, 1).chunk(count_mlp_pieces(x, weight1.shape[0]))
    ]
    return torch.cat(pieces).unflatten(0, x.shape[:2])


@onednn_linear.register_fake
def _(x, weight, bias, gelu, pack):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@onednn_mlp.register_fake
def _(x, weight1, bias1, weight2, bias2, pack):
    return x.new_empty(*x.shape[:-1], weight2.shape[0])


def count_mlp_pieces(x: torch.Tensor, hidden_dim: int) -> int:
    """Number of pieces of the positions of x to run one after the other, so that each hidden map is a small one.

    In pieces the 1x1 layers of the IRMLP are 1.2 to 1.5 times as fast on a CPU (benchmarks/README.md).
    """
    return -(-x[..., 0].numel() * hidden_dim * x.element_size() // _PIECE_BYTES)


@torch.fx.wrap
def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False, pack: bool = False
) -> torch.Tensor:
    """A Linear, or the GELU of one, on a CPU in float32 through oneDNN instead of the BLAS.

    oneDNN takes GELU into the product, where it costs nothing, and is up to twice as fast as PyTorch's BLAS, MKL, on
    CPUs that are not Intel's (benchmarks/README.md). Whoever exports, traces or counts gets the plain operators.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features), None for none.
        gelu: Whether to apply the exact GELU.
        pack: Whether to keep the weight in oneDNN's own layout as well, for inference: twice the memory.

    Returns:
        (..., out_features).
    """
    if not torch.jit.is_scripting() and is_plain_tensor(weight):
        if is_compiled_for_cpu(x):
            return onednn_linear(x, weight, bias, gelu, pack)
        if runs_eagerly_on_cpu(x):
            if not torch.is_grad_enabled():
                return _linear_pointwise(x, weight, bias, gelu, pack)
            x = _OneDnnLinear.apply(x, weight, bias)
            return F.gelu(x) if gelu else x
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


def _is_for_onednn(x: torch.Tensor) -> bool:
    return _HAS_ONEDNN and x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@torch.jit.ignore
def is_plain_tensor(weight: torch.Tensor) -> bool:
    """Whether the weight is none of a class of its own, as quantized ones are, which knows how to multiply itself."""
    return type(weight) in (torch.Tensor, nn.Parameter)


@torch.jit.ignore
def is_compiled_for_cpu(x: torch.Tensor) -> bool:
    """Whether what is done with x is compiled for inference on a CPU in float32."""
    return torch.compiler.is_compiling() and not _is_exporting() and not torch.is_grad_enabled() and _is_for_onednn(x)


@torch.jit.ignore
def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Whether what is done with x is run at once, on a CPU in float32, and neither traced nor intercepted."""
    return (
        isinstance(x, torch.Tensor)  # and no proxy of torch.fx
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and _is_for_onednn(x)
    )


def _matmul_t(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T through oneDNN, for gradients that are not differentiated again."""
    if torch.is_grad_enabled():
        return a @ b.t()
    return _linear_pointwise(a, b, None)


class _OneDnnLinear(torch.autograd.Function):
    """A Linear with its gradients through oneDNN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return _linear_pointwise(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

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
