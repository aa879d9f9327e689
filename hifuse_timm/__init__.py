"""HiFuse for timm: importing this package registers the models with timm."""

from .datasets import DATASETS
from .hifuse import (
    HiFuse,
    hifuse_base,
    hifuse_base_dense,
    hifuse_small,
    hifuse_small_dense,
    hifuse_tiny,
    hifuse_tiny_dense,
)
from .version import __version__

__all__ = [
    "DATASETS",
    "HiFuse",
    "__version__",
    "hifuse_base",
    "hifuse_base_dense",
    "hifuse_small",
    "hifuse_small_dense",
    "hifuse_tiny",
    "hifuse_tiny_dense",
]
