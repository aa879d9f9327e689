"""Entrypoints for torch.hub, as `torch.hub.load("hifuse-timm/hifuse-timm", "hifuse_small")`."""

dependencies = ["torch", "timm", "huggingface_hub", "safetensors"]

from hifuse_timm import (  # noqa: E402, F401
    hifuse_base,
    hifuse_base_dense,
    hifuse_small,
    hifuse_small_dense,
    hifuse_tiny,
    hifuse_tiny_dense,
)
