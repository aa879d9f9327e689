"""Networks that many tests share."""

import functools

import pytest
import timm
import torch

import hifuse_timm  # noqa: F401

# A HiFuse that differs from the registered ones in width alone, and so is quick.
NARROW = dict(dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8))


@pytest.fixture
def narrow():
    """Builds a narrow hifuse_tiny in eval mode, the same weights each time, with any further arguments."""

    def build(name: str = "hifuse_tiny", **kwargs) -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, **(NARROW | kwargs)).eval()

    return build


@pytest.fixture(scope="session")
def full_width():
    """Gives a registered network at full width in eval mode, built once; tests must leave it as they find it."""
    return functools.cache(lambda name: timm.create_model(name).eval())
