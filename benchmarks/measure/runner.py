"""A network on random images as something to call: a forward pass, or a training step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..networks.specs import build, parse_spec, uses_fused_attention

PRECISIONS = dict(
    float32=torch.float32, tf32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16
)  # tf32 is float32 whose products are rounded
MODES = ("inference", "training")


def parse_device(name: str) -> torch.device:
    """Device of that name.

    Raises:
        ValueError: If it is neither the CPU nor a GPU that is there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not known here, expected cpu, cuda or cuda:INDEX")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name!r} is not there, of {torch.cuda.device_count()} GPUs; expected cpu or one of them"
        )
    return device


@dataclass(frozen=True)
class NetworkJob:
    """What to run.

    Attributes:
        spec: Network and form, see `benchmarks.networks.specs`.
        batch_size: Images a call.
        img_size: Pixels a side of the images.
        device: Name of the device.
        precision: A key of PRECISIONS. Inference runs with weights and images of that type, training with weights in
            float32 under autocast.
        mode: 'inference' or 'training', which is forward, backward and a step of AdamW.
        compile: Whether to compile where the spec says nothing.
        channels_last: Whether to use channels_last where the spec says nothing.
    """

    spec: str
    batch_size: int
    img_size: int
    device: str
    precision: str
    mode: str
    compile: bool = False
    channels_last: bool = False


class Runner:
    """A network built and placed as a job says, with random images.

    Attributes:
        keep_gradients: Whether gradients stay allocated between steps, so that each moment of a step holds them.
        fused_attention: Whether any attention is fused; None for a network without timm's attention.
    """

    def __init__(self, job: NetworkJob):
        """
        Raises:
            ImportError: If the library that has the network is not installed.
            ValueError: If the network lacks what the spec asks for, or mode and form do not go together.
        """
        spec = parse_spec(job.spec, job.compile, job.channels_last)
        self.training = job.mode == "training"
        self.keep_gradients = False
        if self.training and spec.fuse:
            raise ValueError(f"models: {job.spec} is folded for inference and cannot train; leave fuse out")
        device, dtype = torch.device(job.device), PRECISIONS[job.precision]
        model = build(spec, job.img_size).train(self.training)
        self.fused_attention = uses_fused_attention(model)
        images = torch.randn(job.batch_size, 3, job.img_size, job.img_size)
        cast = torch.float32 if self.training else dtype
        self.model = model.to(device, cast, memory_format=spec.memory_format)
        self.images = images.to(device, cast, memory_format=spec.memory_format)
        # static shapes: a batch size measured after another is compiled for itself
        self.network = torch.compile(self.model, dynamic=False) if spec.compile else self.model
        if self.training:
            self.labels = torch.randint(spec.form.num_classes, (job.batch_size,), device=device)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)
            self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
            lower = dtype != torch.float32
            self.autocast = torch.autocast(device.type, dtype) if lower else nullcontext()

    def step(self) -> None:
        """One forward pass, or one training step."""
        if not self.training:
            with torch.inference_mode():
                self.network(self.images)
            return
        with self.autocast:
            logits = self.network(self.images)
            # Conformer has two classifiers
            outputs = logits if isinstance(logits, (tuple, list)) else [logits]
            loss = sum(nn.functional.cross_entropy(output, self.labels) for output in outputs)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)

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
