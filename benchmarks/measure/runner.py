"""A network on random images as something to call: a forward pass, or a training step.

The workers of `benchmarks.versus` use it beside the hifuse_timm of another checkout, so neither this module nor timing
imports any.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from .timing import Runner


def prepare_device(device: torch.device, tf32: bool = False) -> None:
    """Make a device the current one, and set how it multiplies."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # input sizes seldom change
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


class NetworkRunner(Runner):
    """A network on random images.

    Attributes:
        model: The network, in its mode, on its device.
        images: What it is called with, (B, 3, H, W).
        keep_gradients: Whether gradients stay allocated between steps, so that each moment of a step holds them.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        img_size: int,
        num_classes: int,
        device: str,
        dtype: torch.dtype = torch.float32,
        autocast: bool = False,
        training: bool = False,
        compile: bool = False,
        compile_mode: str | None = None,
        channels_last: bool = False,
    ):
        """
        Args:
            model: Network to call, which is changed.
            batch_size: Images a call.
            img_size: Pixels a side of the images.
            num_classes: Number of classes that labels are drawn from.
            device: Name of the device.
            dtype: Type of weights and images; what autocast computes in, where it is used.
            autocast: Whether weights and images are float32, under autocast, as they always are in training.
            training: Whether a call is a training step: forward, backward and a step of AdamW.
            compile: Whether to compile the network.
            compile_mode: Mode of torch.compile.
            channels_last: Whether weights and images are in channels_last memory format.
        """
        self.amount, self.training, self.keep_gradients = batch_size, training, False
        where = torch.device(device)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        autocast = autocast or training
        cast = torch.float32 if autocast else dtype
        images = torch.randn(batch_size, 3, img_size, img_size)
        self.model = model.train(training).to(where, cast, memory_format=memory_format)
        self.images = images.to(where, cast, memory_format=memory_format)
        # static shapes: a batch size measured after another is compiled for itself
        self.network = torch.compile(self.model, dynamic=False, mode=compile_mode) if compile else self.model
        lower = autocast and dtype != torch.float32
        self.autocast = torch.autocast(where.type, dtype) if lower else nullcontext()
        if training:
            self.labels = torch.randint(num_classes, (batch_size,), device=where)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)
            self.scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)

    def forward(self) -> list[torch.Tensor]:
        """Logits of each classifier, of which Conformer has two, each (B, number of classes)."""
        with self.autocast, nullcontext() if self.training else torch.inference_mode():
            logits = self.network(self.images)
        return list(logits) if isinstance(logits, (tuple, list)) else [logits]

    def step(self) -> None:
        """One forward pass, or one training step."""
        outputs = self.forward()
        if not self.training:
            return
        with self.autocast:
            loss = sum(nn.functional.cross_entropy(output, self.labels) for output in outputs)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)

    @property
    def fused_attention(self) -> bool | None:
        """Whether any attention is fused; None for a network without timm's attention."""
        found = {bool(module.fused_attn) for module in self.model.modules() if hasattr(module, "fused_attn")}
        return any(found) if found else None

    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(tensor.nbytes for tensors in (self.model.parameters(), self.model.buffers()) for tensor in tensors)

    def state_bytes(self) -> int:
        """Bytes of gradients and optimizer state."""
        if not self.training:
            return 0
        gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
        state = self.optimizer.state.values()
        return gradients + sum(v.nbytes for values in state for v in values.values() if torch.is_tensor(v))
