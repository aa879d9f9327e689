"""Networks, and a Hub, that many tests share."""

import functools
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from hub_server import HubServer
from huggingface_hub import constants

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


@pytest.fixture
def offline(monkeypatch):
    """Makes whatever looks for an address of a network fail."""

    def refuse(*args, **kwargs):
        raise OSError("a test that needs no network looks for an address")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def hub(tmp_path):
    """A stand-in Hub that this process's client talks to, with an empty cache and no token."""
    with stand_in_hub(tmp_path) as server:
        yield server


@contextmanager
def stand_in_hub(folder: Path):
    """Gives a stand-in Hub that this process's client talks to; its cache and tokens lie in the folder."""
    with HubServer() as server, pytest.MonkeyPatch.context() as monkeypatch:
        set_endpoint(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "stored_tokens"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's, between attempts
        yield server


def set_endpoint(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
