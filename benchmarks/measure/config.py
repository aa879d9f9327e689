"""What to run and how: precisions, modes, devices, and the runner that they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hifuse_timm import loading

from ..networks.specs import Spec, build, parse_spec
from .runner import NetworkRunner

MODES = ("inference", "training")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # of these, those that replay CUDA graphs


@dataclass(frozen=True)
class Precision:
    """What a network computes in.

    Attributes:
        dtype: Type of weights and images, or what autocast computes in.
        autocast: Whether weights and images stay in float32, under autocast.
        tf32: Whether a GPU rounds what it multiplies in float32 to TF32.
    """

    dtype: torch.dtype
    autocast: bool = False
    tf32: bool = False


PRECISIONS = {name: Precision(dtype) for name, dtype in loading.PRECISIONS.items()} | dict(
    tf32=Precision(torch.float32, tf32=True),
    amp=Precision(torch.float16, autocast=True),  # amp and amp_bfloat16 as timm's benchmark.py calls them
    amp_bfloat16=Precision(torch.bfloat16, autocast=True),
)


def parse_device(name: str | None) -> torch.device:
    """Device of that name, a GPU with its index; for None the GPU, if there is one, else the CPU.

    Raises:
        ValueError: If it is neither the CPU nor a GPU that is there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    # torch.cuda.set_device takes no GPU without an index
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


@dataclass(frozen=True)
class RunnerConfig:
    """What to run.

    Attributes:
        spec: Network and form, see `benchmarks.networks.specs`.
        batch_size: Images a call.
        img_size: Pixels a side of the images.
        device: Name of the device.
        precision: A key of PRECISIONS. Training always has its weights in float32, under autocast.
        mode: 'inference' or 'training', which is forward, backward and a step of AdamW.
        compile: Whether to compile where the spec says nothing.
        channels_last: Whether to use channels_last where the spec says nothing.
        compile_mode: Mode of torch.compile, its default for None.
    """

    spec: str
    batch_size: int
    img_size: int
    device: str
    precision: str
    mode: str
    compile: bool = False
    channels_last: bool = False
    compile_mode: str | None = None

    @property
    def cuda_graphs(self) -> bool:
        """Whether the network runs as CUDA graphs."""
        on_gpu = torch.device(self.device).type == "cuda"
        return on_gpu and self.compile_mode in _CUDA_GRAPHS and self.parse().compile

    def parse(self) -> Spec:
        """The network and its form.

        Raises:
            ValueError: If there is no such network or option, or mode and form do not go together.
        """
        spec = parse_spec(self.spec, self.compile, self.channels_last)
        if spec.fuse and self.mode == "training":
            raise ValueError(f"models: {self.spec} is folded for inference and cannot train; leave fuse out")
        return spec

    def runner_arguments(self) -> dict:
        """Arguments of `NetworkRunner` beside the network."""
        spec, precision = self.parse(), PRECISIONS[self.precision]
        return dict(
            batch_size=self.batch_size,
            img_size=self.img_size,
            num_classes=spec.form.num_classes,
            device=self.device,
            dtype=precision.dtype,
            autocast=precision.autocast,
            training=self.mode == "training",
            compile=spec.compile,
            compile_mode=self.compile_mode,
            channels_last=spec.channels_last,
        )


def make_runner(config: RunnerConfig) -> NetworkRunner:
    """Build a network and place it as its config says.

    Raises:
        RuntimeError: If the library that has the network is not installed.
        ValueError: If the network lacks what the spec asks for, or mode and form do not go together.
    """
    return NetworkRunner(build(config.parse(), config.img_size), **config.runner_arguments())
