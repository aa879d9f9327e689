"""What a network holds, computes and moves.

Parameters and multiply-accumulates, op by op with fvcore and by the rule of the paper's counter; the bytes that go in
and out of its ops, which on a GPU decide how fast it runs eagerly.
"""

import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a loss on import, which torch deprecates
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import elementwise_flop_counter, get_shape

from ..networks.table4 import Form, create_network

# fvcore's names of the ops behind convolutions and linear layers
_CONV_LINEAR = ("conv", "linear", "addmm")

# traffic is counted as it is at this batch size, where the weights are a small part of it
TRAFFIC_BATCH = 64
TRAFFIC_DTYPE = torch.bfloat16
# ops that move nothing, though PyTorch does not call them views
_FREE = (torch.ops.aten._unsafe_view, torch.ops.aten.as_strided_, torch.ops.aten.empty, torch.ops.aten.new_empty)

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)  # _BatchNorm: InstanceNorm too
_ACT = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6)
_POOL = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


@dataclass
class Traffic:
    """What the ops of a forward pass move, views left out and attention taken as one op.

    Attributes:
        bytes_per_image: Bytes of all inputs, weights among them, and outputs of all ops, for an image of the batch.
        calls: Number of calls of ops.
    """

    bytes_per_image: float
    calls: int


@dataclass
class Count:
    """What a network of some input size holds and computes.

    Attributes:
        params: Number of parameters.
        conv_linear: Multiply-accumulates of convolutions and linear layers.
        full: The same with matrix products, attention, norms and pooling.
        paper_rule: By the rule of the paper's counter, see `count_by_paper_rule`, for each module that it counts.
        activations: Values that convolutions, linear layers and matrix products give, as timm counts them.
        uncounted_ops: Calls of each op that fvcore knows no count for.
        uncalled: Parameters of each module that holds some and never ran.
        traffic: What a forward pass moves.
        fused_traffic: The same of the network folded for inference, where it folds.
    """

    params: int
    conv_linear: float
    full: float
    paper_rule: Counter[str]
    activations: int = 0
    uncounted_ops: dict[str, int] = field(default_factory=dict)
    uncalled: dict[str, int] = field(default_factory=dict)
    traffic: Traffic | None = None
    fused_traffic: Traffic | None = None


def _attention_products(inputs, outputs) -> int:
    """Multiply-accumulates of the two matrix products inside aten::scaled_dot_product_attention."""
    query, key, value = (get_shape(v) for v in inputs[:3])  # each (..., N, C)
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]


_PER_INPUT_ELEMENT = elementwise_flop_counter(1, 0)
_HANDLES = {"aten::scaled_dot_product_attention": _attention_products} | {
    # adaptive_avg_pool2d has a handle in fvcore, one an element of the input; the other poolings follow it
    f"aten::{op}": _PER_INPUT_ELEMENT
    for op in ("avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "mean", "amax")
}


def count_by_paper_rule(model: nn.Module, image: torch.Tensor) -> Counter[str]:
    """Count as mmcv's counter does, which the paper names: module by module, during one forward pass.

    Convolutions (with bias), Linear layers (without), two an element of an affine norm and one of any other, one an
    element of a ReLU or of what a pooling takes. Subclasses of these modules count as they do. Anything that is no
    such module counts nothing: attention's matrix products, GELU, sigmoid, hand-written norms.

    Returns:
        Multiply-accumulates by module name, of the modules that ran.
    """
    counts: Counter[str] = Counter()

    def macs(module: nn.Module, x: torch.Tensor, out: torch.Tensor) -> int:
        if isinstance(module, _CONV):
            return out.numel() * (module.weight[0].numel() + (module.bias is not None))
        if isinstance(module, nn.Linear):
            return x.numel() * module.out_features
        if isinstance(module, _NORM):
            return x.numel() * (1 if module.weight is None else 2)
        return out.numel() if isinstance(module, _ACT) else x.numel()

    def add(name: str, module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        counts[name] += macs(module, inputs[0], out)

    hooks = [
        module.register_forward_hook(partial(add, name))
        for name, module in model.named_modules()
        if isinstance(module, (*_CONV, nn.Linear, *_NORM, *_ACT, *_POOL))
    ]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def sum_without(counts: Counter[str], pattern: str) -> int:
    """Total of the counts of the modules whose names the pattern does not match anywhere."""
    return sum(count for name, count in counts.items() if not re.search(pattern, name))


def count(model: nn.Module, image: torch.Tensor) -> Count:
    """Count a network.

    Args:
        model: Network, in eval mode, not on the meta device: fvcore traces a forward pass.
        image: Input, (1, C, H, W).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other longer than these passes take
    try:
        analysis = FlopCountAnalysis(model, image).set_op_handle(**_HANDLES)
        # what these warnings would say goes into the result
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        macs = analysis.by_operator()
        paper_rule = count_by_paper_rule(model, image)
        activations = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False).tracer_warnings("none")
        activations = activations.uncalled_modules_warnings(False).total()
    finally:
        torch.set_num_threads(threads)
    uncalled = analysis.uncalled_modules()
    # a module within an uncalled one is part of it
    roots = [name for name in sorted(uncalled) if name.rpartition(".")[0] not in uncalled]
    params = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in roots}
    return Count(
        params=sum(p.numel() for p in model.parameters()),
        conv_linear=sum(macs[op] for op in _CONV_LINEAR),
        full=macs.total(),
        paper_rule=paper_rule,
        activations=activations,
        uncounted_ops={op.removeprefix("aten::"): calls for op, calls in analysis.unsupported_ops().most_common()},
        uncalled={name: number for name, number in params.items() if number},
    )


class _Ops(TorchDispatchMode):
    """Adds up what the ops under it move."""

    def __init__(self):
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and args[0].is_contiguous(memory_format=torch.channels_last):
            # as a GPU lays it out; on the meta device it would be NCHW, and what follows would have to copy it
            out = out.to(memory_format=torch.channels_last)
        if not func.is_view and func.overloadpacket not in _FREE:
            self.add(args, kwargs, out)
        return out

    def add(self, *values) -> None:
        tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.calls += 1


class _WholeAttention(TorchFunctionMode):
    """Takes attention for the one op that it is on a GPU; on the meta device PyTorch writes it out."""

    def __init__(self, ops: _Ops):
        super().__init__()
        self.ops = ops

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, _, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)  # as the fused kernels lay it out
        self.ops.add(args, kwargs, out)
        return out


@torch.no_grad()
def count_traffic(model: nn.Module, img_size: int) -> Traffic:
    """Count what a forward pass of a batch in bfloat16 moves, in eager mode, if nothing stays in a GPU's caches.

    Args:
        model: Network, in eval mode; it is moved to the meta device and cast.
        img_size: Pixels a side of the input.
    """
    model = model.to("meta", TRAFFIC_DTYPE, memory_format=torch.channels_last)
    images = torch.empty(TRAFFIC_BATCH, 3, img_size, img_size, device="meta", dtype=TRAFFIC_DTYPE)
    images = images.contiguous(memory_format=torch.channels_last)
    model(images)  # what is made of the weights at the first call, and kept, is no part of the others
    with _Ops() as ops, _WholeAttention(ops):
        model(images)
    return Traffic(ops.bytes / TRAFFIC_BATCH, ops.calls)


@cache
def count_form(form: Form, img_size: int) -> Count:
    """Build a network, count it, and let it go."""
    model = create_network(form, img_size)
    counted = count(model, torch.randn(1, 3, img_size, img_size))
    counted.traffic = count_traffic(model, img_size)
    if hasattr(model, "fuse"):
        counted.fused_traffic = count_traffic(model.fuse(), img_size)
    return counted
