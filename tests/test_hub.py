"""Weights from the Hub, end to end: the real client against a stand-in server, and every way in which it can fail."""

import io
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from conftest import NARROW, set_endpoint
from hub_server import HubServer
from huggingface_hub import constants
from safetensors.torch import save, save_file

from hifuse_timm.hub import NAMESPACE, redact

REPO_ID = f"{NAMESPACE}/hifuse_tiny.isic2018"


@pytest.fixture
def source(narrow, hub):
    """A narrow network whose weights are on the stand-in Hub as those of hifuse_tiny."""
    model = narrow()
    hub.add(REPO_ID, {"model.safetensors": save(model.state_dict()), "config.json": config_of_narrow()})
    return model


def config_of_narrow() -> bytes:
    cfg = dict(timm.get_pretrained_cfg("hifuse_tiny").to_dict(remove_source=True))
    cfg.pop("architecture", None)
    return json.dumps(
        dict(architecture="hifuse_tiny", num_classes=7, model_args=NARROW, pretrained_cfg=cfg), default=list
    ).encode()


def load(**kwargs) -> torch.nn.Module:
    return timm.create_model("hifuse_tiny", pretrained=True, **(NARROW | kwargs)).eval()


@torch.no_grad()
def same_outputs(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.equal(model(x), other(x))


def cached_files(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if "blobs" in p.parts and p.is_file())


# End to end, at full width


@pytest.fixture(scope="module")
def published(tmp_path_factory, full_width):
    """hifuse_tiny, published from a process of its own; gives the server, its environment and the network."""
    directory = tmp_path_factory.mktemp("published")
    model = full_width("hifuse_tiny")
    save_file(model.state_dict(), directory / "checkpoint.safetensors")
    with HubServer() as server:
        env = dict(
            os.environ,
            HF_ENDPOINT=server.url,
            HF_HOME=str(directory / "hf_home"),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HIFUSE_TIMM_NAMESPACE="clinic",
            PYTHONPATH=str(Path(__file__).parents[1]),
        )
        command = "publish --model hifuse_tiny --dataset isic2018 --checkpoint".split()
        subprocess.run(
            [sys.executable, "-m", "hifuse_timm", *command, str(directory / "checkpoint.safetensors")],
            env=env | dict(HF_TOKEN=server.token),
            check=True,
            timeout=120,
        )
        yield server, env, model


LOAD = """
import sys, timm, torch, hifuse_timm
x = torch.ones(1, 3, 64, 64)
with torch.no_grad():
    outputs = [timm.create_model(name, pretrained=True).eval()(x) for name in sys.argv[2:]]
torch.save(outputs, sys.argv[1])
"""


def outputs_in_fresh_process(env: dict, path: Path, *names: str) -> list[torch.Tensor]:
    env = {k: v for k, v in env.items() if k != "HF_TOKEN"}
    subprocess.run([sys.executable, "-c", LOAD, str(path), *names], env=env, check=True, timeout=120)
    return torch.load(path)


def test_published_weights_load_bit_identically_then_from_the_cache_and_offline(published, tmp_path):
    server, env, model = published
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 64, 64))

    assert len(server.repos["clinic/hifuse_tiny.isic2018"]["commits"]) == 2  # creation, and one with every file
    names = ("hifuse_tiny", "hf-hub:clinic/hifuse_tiny.isic2018")
    server.requests.clear()
    for output in outputs_in_fresh_process(env, tmp_path / "first", *names, *names):
        assert torch.equal(output, expected)
    assert server.requests["GET", "resolve"] == 2  # config.json and model.safetensors, once for all four

    server.requests.clear()
    for output in outputs_in_fresh_process(env | dict(HF_HUB_OFFLINE="1"), tmp_path / "offline", *names):
        assert torch.equal(output, expected)
    assert not server.requests


# What timm's models do with pretrained weights


def test_registered_name_and_hub_name_load_the_same_weights(source):
    assert same_outputs(load(), source)
    assert same_outputs(timm.create_model(f"hf-hub:{REPO_ID}", pretrained=True).eval(), source)


def test_other_number_of_classes_keeps_all_but_the_head(source):
    model = load(num_classes=5)
    assert model.head.fc.out_features == 5
    torch.testing.assert_close(model.stages.state_dict(), source.stages.state_dict(), rtol=0, atol=0)
    assert isinstance(load(num_classes=0).head.fc, torch.nn.Identity)


def test_other_number_of_channels_adapts_both_stems(source):
    model = load(in_chans=1)
    for stem in ("local_stem", "global_stem"):
        expected = source.get_submodule(stem)[0].weight.sum(dim=1, keepdim=True)
        torch.testing.assert_close(model.get_submodule(stem)[0].weight, expected)


def test_features_only_has_the_weights(source):
    features = load(features_only=True)
    x = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], source.forward_features(x), rtol=0, atol=0)


def test_revision_of_a_hub_name_is_kept(hub, source):
    first = hub.repos[REPO_ID]["commits"][-1]
    assert same_outputs(timm.create_model(f"hf-hub:{REPO_ID}@{first}", pretrained=True).eval(), source)
    with pytest.raises(FileNotFoundError, match="no revision 'nope'"):
        load(pretrained_cfg_overlay=dict(hf_hub_id=f"{REPO_ID}@nope"))


def test_pickled_weights_are_taken_where_there_are_no_others(hub, narrow, tmp_path):
    torch.save(narrow().state_dict(), tmp_path / "weights")
    hub.add(REPO_ID, {"pytorch_model.bin": (tmp_path / "weights").read_bytes()})
    assert same_outputs(load(), narrow())


# Everything that can go wrong: one clear error, then the next try works


@pytest.mark.parametrize(
    "fault, error, words",
    [
        ("truncate", OSError, ["failed", "Consistency check", "try again"]),
        ("corrupt", OSError, ["SHA-256", "damaged", "try again"]),
        ("gated", PermissionError, ["gated", "accept", "HF_TOKEN"]),
        ("unavailable", ConnectionError, ["cannot be reached", "503", "try again"]),
    ],
)
def test_fault_of_a_download_is_one_clear_error_and_leaves_nothing_behind(hub, source, tmp_path, fault, error, words):
    with hub.failing(fault), pytest.raises(error) as info:
        load()
    for word in [REPO_ID, *words]:
        assert word in str(info.value)
    assert cached_files(tmp_path) == []
    assert same_outputs(load(), source)


def test_download_that_breaks_off_is_resumed(hub, source):
    hub.fault = "break off once"
    assert same_outputs(load(), source)
    assert hub.requests["GET", "resolve"] == 2


def test_file_that_was_damaged_in_the_cache_is_removed_and_downloaded_again(hub, source, tmp_path):
    load()
    [blob] = [p for p in (tmp_path / "cache").rglob("*") if p.parent.name == "blobs"]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(OSError, match="SHA-256"):
        load()
    assert cached_files(tmp_path) == []
    assert same_outputs(load(), source)


def test_cache_without_symbolic_links_is_verified_too(hub, source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    with hub.failing("corrupt"), pytest.raises(OSError, match="SHA-256"):
        load()
    assert same_outputs(load(), source)


@pytest.mark.parametrize("has_links", [True, False])
def test_checksum_that_cannot_be_compared_is_said(hub, narrow, monkeypatch, caplog, tmp_path, has_links):
    if has_links:  # a file that the Hub keeps outside of its large file storage
        filename, reason = "weights.pth", "the Hub gives no SHA-256"
        torch.save(narrow().state_dict(), tmp_path / filename)
        hub.add(REPO_ID, {filename: (tmp_path / filename).read_bytes()})
    else:
        filename, reason = "model.safetensors", "no network"
        hub.add(REPO_ID, {filename: save(narrow().state_dict())})
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
        monkeypatch.setattr("hifuse_timm.hub.get_hf_file_metadata", mock.Mock(side_effect=OSError("no network")))
    assert same_outputs(load(pretrained_cfg_overlay=dict(hf_hub_filename=filename)), narrow())
    assert f"{filename} of {REPO_ID} was not compared with the Hub's checksum: {reason}" in caplog.text


@pytest.mark.parametrize("fault", ["truncate", "corrupt", "gated", "unavailable", "missing", "no network"])
def test_token_and_password_of_the_endpoint_never_appear(hub, source, monkeypatch, fault):
    url = "http://127.0.0.1:9" if fault == "no network" else constants.ENDPOINT
    set_endpoint(monkeypatch, url.replace("://", "://jane:pa55word@"))
    monkeypatch.setenv("HF_TOKEN", "hf_t0ken")
    [handler] = logging.getLogger("huggingface_hub").handlers
    monkeypatch.setattr(handler, "stream", log := io.StringIO())
    repo_id = "clinic/missing" if fault == "missing" else REPO_ID
    with hub.failing(fault), pytest.raises(OSError) as info:
        load(pretrained_cfg_overlay=dict(hf_hub_id=repo_id))
    shown = "".join(traceback.format_exception(info.value)) + log.getvalue()
    assert bool(log.getvalue()) == (fault in ("unavailable", "no network"))
    assert repo_id in shown and "pa55word" not in shown and "jane" not in shown and "hf_t0ken" not in shown


def test_secrets_are_taken_out_of_any_text(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_t0ken")
    assert redact("https://jane:p@ss@hub.org/a?Signature=abc&x=1 refused") == "https://hub.org/a refused"
    assert redact("Illegal header value b'Bearer hf_other' of hf_t0ken") == "Illegal header value b'Bearer ***' of ***"


def test_unpublished_weights_say_so_and_what_works(hub):
    with pytest.raises(FileNotFoundError) as info:
        load()
    for words in (
        f"no weights are published at {REPO_ID}",
        "pretrained=False",
        "HIFUSE_TIMM_NAMESPACE",
        "pretrained_cfg_overlay=dict(file=",
        "https://github.com/hifuse-timm/hifuse-timm/blob/main/docs/train.md",
    ):
        assert words in str(info.value)
    hub.add(REPO_ID, {"README.md": b"nothing yet"})
    with pytest.raises(FileNotFoundError, match="no weights are published"):
        load()


def test_private_weights_need_a_token(hub, source, monkeypatch):
    hub.repos[REPO_ID]["private"] = True
    with pytest.raises(FileNotFoundError, match="private and no token"):
        load()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert same_outputs(load(), source)


def test_no_network_is_one_clear_error_unless_the_weights_are_cached(hub, source, monkeypatch):
    url = constants.ENDPOINT
    set_endpoint(monkeypatch, "http://127.0.0.1:9")  # discard: nothing listens
    with pytest.raises(ConnectionError, match=f"{REPO_ID} are not in the cache, and the Hub .* cannot be reached"):
        load()
    set_endpoint(monkeypatch, url)
    load()
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert same_outputs(load(), source)


def test_offline_mode_without_cached_weights_says_so(hub, source, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        load()
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same_outputs(load(), source)


def test_published_file_that_is_broken_or_foreign_is_one_clear_error(hub, source):
    weights = hub.repos[REPO_ID]["files"]["model.safetensors"]
    hub.add(REPO_ID, {"model.safetensors": weights[: len(weights) // 2]})
    with pytest.raises(ValueError, match="truncated"):
        load()
    hub.add(REPO_ID, {"model.safetensors": save({"conv1.weight": torch.zeros(2)})})
    with pytest.raises(ValueError, match="not those of a HiFuse: their keys are conv1.weight"):
        load()
    hub.add(REPO_ID, {"model.safetensors": weights})
    assert same_outputs(load(), source)


def test_namespace_that_is_no_repository_id_is_one_clear_error(hub):
    with pytest.raises(ValueError, match="'a b/c' is no repository id"):
        load(pretrained_cfg_overlay=dict(hf_hub_id="a b/c"))


def test_unregistered_tag_lists_the_registered_ones():
    with pytest.raises(ValueError, match="hifuse_small.foo is not registered.*covid19ct, isic2018, kvasir"):
        timm.create_model("hifuse_small.foo", pretrained=True)


def test_model_without_published_weights_says_what_works():
    with pytest.raises(RuntimeError, match="hifuse_tiny_dense has no published weights.*pretrained=False.*dict.file="):
        timm.create_model("hifuse_tiny_dense", pretrained=True)


# Weights from a file of one's own


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pth.tar"])
def test_head_of_a_file_is_kept_where_it_fits(narrow, tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    model = narrow(num_classes=5)
    if ending == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(dict(state_dict=model.state_dict(), epoch=3, arch="hifuse_tiny"), path)
    overlay = dict(file=str(path))
    assert same_outputs(load(pretrained_cfg_overlay=overlay), model)
    assert same_outputs(load(pretrained_cfg_overlay=overlay, num_classes=5), model)
    # as many as the registered config says, but not as the file has: a new head
    assert load(pretrained_cfg_overlay=overlay, num_classes=7).head.fc.out_features == 7


def test_channels_of_a_file_are_the_models_unless_others_are_asked_for(narrow, tmp_path):
    path = tmp_path / "weights.safetensors"
    model = narrow(in_chans=1)
    save_file(model.state_dict(), path)
    overlay = dict(file=str(path))
    assert load(pretrained_cfg_overlay=overlay).in_chans == 1
    expected = model.local_stem[0].weight.repeat(1, 3, 1, 1) / 3
    torch.testing.assert_close(load(pretrained_cfg_overlay=overlay, in_chans=3).local_stem[0].weight, expected)


def test_file_without_a_head_gives_features_or_a_new_head(narrow, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(narrow(num_classes=0).state_dict(), path)
    assert load(pretrained_cfg_overlay=dict(file=str(path))).num_classes == 0
    assert load(pretrained_cfg_overlay=dict(file=str(path)), num_classes=4).head.fc.out_features == 4


def test_weights_in_memory_are_taken_as_a_file_is(narrow):
    model = narrow(num_classes=5)
    assert same_outputs(load(pretrained_cfg_overlay=dict(state_dict=model.state_dict())), model)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth does not exist"):
        load(pretrained_cfg_overlay=dict(file=str(tmp_path / "nothing.pth")))
