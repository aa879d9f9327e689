"""Specs: a network and the form in which to run it, written `NAME[option,...]`."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from timm.layers import set_fused_attn, use_fused_attn
from timm.utils import ParseKwargs, reparameterize_model
from torch import nn

from .table4 import Form, create_network, find_form

OPTIONS = dict(
    fuse="fold every BatchNorm into its neighbour, for inference",
    compile="torch.compile",
    channels_last="weights and images in channels_last memory format",
    conv_mlp="1x1 convolutions for the linear layers of its MLPs, where timm's network takes conv_mlp",
    fused_attn="F.scaled_dot_product_attention wherever timm's layers can use it",
    grad_checkpointing="compute activations again in the backward pass",
)
_SWITCHES = ("compile", "channels_last", "fused_attn")
_FOLDING = ("fuse", "reparameterize", "switch_to_deploy")  # methods that timm.utils.reparameterize_model calls


@dataclass(frozen=True)
class Spec:
    """A network and the form in which to run it; see OPTIONS.

    Attributes:
        text: The spec as written.
        form: The network.
        fused_attn: None for what timm does by default.
    """

    text: str
    form: Form
    fuse: bool = False
    compile: bool = False
    channels_last: bool = False
    conv_mlp: bool = False
    fused_attn: bool | None = None
    grad_checkpointing: bool = False


def parse_model_kwargs(arguments: Sequence[str]) -> dict:
    """Arguments of a network, NAME=VALUE, as timm's scripts read them after `--model-kwargs`."""
    parser = ArgumentParser()
    parser.add_argument("--model-kwargs", nargs="*", action=ParseKwargs)
    return parser.parse_args(["--model-kwargs", *arguments]).model_kwargs


def parse_spec(text: str, compile: bool = False, channels_last: bool = False) -> Spec:
    """Read `NAME` or `NAME[option,...]`, as in `convnext_base[conv_mlp,channels_last]`.

    The switches compile, channels_last and fused_attn can have no_ before them. Options NAME=VALUE are arguments of the
    network, as in `hifuse_tiny[branches=local,depths=(1,1,1,1)]`.

    Args:
        text: The spec.
        compile: Whether to compile where the spec says nothing.
        channels_last: Whether to use channels_last where the spec says nothing.

    Raises:
        ValueError: If the network or an option does not exist.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", text)
    if match is None:
        raise ValueError(f"models: {text!r} is no spec, expected NAME or NAME[option,...]")
    # commas within parentheses are those of a value
    options = [option.strip() for option in re.split(r",(?![^()]*\))", match[2] or "") if option.strip()]
    model_kwargs = parse_model_kwargs([option for option in options if "=" in option])
    form = replace(find_form(match[1]), kwargs=model_kwargs)
    spec = Spec(text, form, compile=compile, channels_last=channels_last)
    for option in options:
        if "=" in option:
            continue
        switch = option.removeprefix("no_")
        if switch not in OPTIONS or (switch != option and switch not in _SWITCHES):
            known = ", ".join([*OPTIONS, *(f"no_{switch}" for switch in _SWITCHES)])
            raise ValueError(
                f"models: {option!r} in {text!r} is no option, expected one of {known}, or NAME=VALUE for the network"
            )
        spec = replace(spec, **{switch: switch == option})
    return spec


@contextmanager
def _fused_attention(enable: bool | None) -> Iterator[None]:
    """Have networks that timm builds inside use fused attention or not."""
    default, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    if enable is not None:
        set_fused_attn(enable, experimental=enable)
    try:
        yield
    finally:
        set_fused_attn(default, experimental=experimental)


def build(spec: Spec, img_size: int) -> nn.Module:
    """Build a network as its spec says, in eval mode on the CPU; placing and compiling it is left to do.

    Raises:
        RuntimeError: If the library that has the network is not installed.
        ValueError: If the network lacks what an option asks for.
    """
    with _fused_attention(spec.fused_attn):
        try:
            model = create_network(spec.form, img_size, **(dict(conv_mlp=True) if spec.conv_mlp else {}))
        except TypeError as error:
            raise ValueError(f"models: {spec.text} cannot be built ({error})") from error
    if spec.fuse:
        if not any(hasattr(m, name) for m in model.modules() for name in _FOLDING):
            raise ValueError(f"models: {spec.form.model} has nothing that folds; leave fuse out of {spec.text}")
        # timm's function folds the parts of a network, not a network that folds itself
        model = model.fuse() if hasattr(model, "fuse") else reparameterize_model(model, inplace=True)
    if spec.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"models: {spec.form.model} has no set_grad_checkpointing(), as {spec.text} asks for")
        model.set_grad_checkpointing()
    return model
