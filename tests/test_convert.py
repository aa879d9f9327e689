"""What `convert` writes loads by the call that it prints; what could not be loaded is not written."""

import argparse
import re

import pytest
import timm
import torch
from conftest import NARROW
from parity import MODELS, authors_state_dict, narrow_authors_state_dict
from safetensors.torch import load_file, save_file

from hifuse_timm.__main__ import main


def convert(content: dict, folder, *options: str) -> int:
    torch.save(content, folder / "in.pth")
    return main(["convert", str(folder / "in.pth"), str(folder / "out.safetensors"), *options])


def run_printed_call(printed: str) -> torch.nn.Module:
    [call] = re.findall(r"written to .*; (timm\.create_model\(.*\)) loads it", printed)
    return eval(call)


def assert_holds(model: torch.nn.Module, expected: dict[str, torch.Tensor]):
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


def test_authors_checkpoint_is_recognised_converted_and_loads(tmp_path, capsys):
    assert convert({"net": authors_state_dict("tiny"), "epoch": 99}, tmp_path) == 0
    printed = capsys.readouterr().out
    counts = MODELS["variants"]["tiny"]
    assert "is of hifuse_tiny (depthwise IRMLP), with 7 classes" in printed
    assert f"parameters that never run: {counts['parameters'] - counts['live_parameters']:,}" in printed
    assert "fu*.W: " in printed and "layers*.blocks.*.norm2: " in printed

    converted = run_printed_call(printed)
    source = dict(file=str(tmp_path / "in.pth"))
    assert_holds(
        converted, timm.create_model("hifuse_tiny", pretrained=True, pretrained_cfg_overlay=source).state_dict()
    )
    assert set(load_file(tmp_path / "out.safetensors")) == set(converted.state_dict())


def test_authors_checkpoint_of_no_variant_is_described_and_loads(tmp_path, capsys):
    assert convert(narrow_authors_state_dict(), tmp_path) == 0
    printed = capsys.readouterr().out
    assert "is of a HiFuse of dims (16, 32, 64, 128), depths (2, 2, 2, 2) local" in printed
    assert "create_model('hifuse_tiny', dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), pretrained=True" in printed
    assert_holds(run_printed_call(printed), load_file(tmp_path / "out.safetensors"))


@pytest.mark.parametrize(
    "name, kwargs, words",
    [
        ("hifuse_tiny", dict(dims=(96, 192), depths=(1, 1), num_heads=(4, 6)), "'hifuse_tiny', dims=(96, 192)"),
        ("hifuse_tiny", dict(NARROW, num_heads=(2, 4, 8, 16), window_size=5), "num_heads=(2, 4, 8, 16), window_size=5"),
        ("hifuse_tiny", dict(NARROW, depths=(1, 2, 1, 1), global_depths=(2, 1, 1, 3)), "global_depths=(2, 1, 1, 3)"),
        ("hifuse_tiny_dense", NARROW, "'hifuse_tiny_dense', dims="),
        ("hifuse_tiny", dict(NARROW, branches="local"), "branches='local'"),
        ("hifuse_tiny", dict(NARROW, branch_attention=False, irmlp=False), "branch_attention=False, irmlp=False"),
        ("hifuse_tiny", dict(NARROW, in_chans=1, num_classes=0), "with no classes"),
    ],
)
def test_network_of_any_form_loads_by_the_printed_call(tmp_path, capsys, name, kwargs, words):
    state_dict = timm.create_model(name, **kwargs).state_dict()
    assert convert(state_dict, tmp_path) == 0
    printed = capsys.readouterr().out
    assert words in printed
    assert_holds(run_printed_call(printed), state_dict)


def test_what_no_weights_tell_is_taken_from_the_training(tmp_path, capsys):
    kwargs = dict(NARROW, depths=(1, 1, 1, 1), shortcut=False)
    trained = timm.create_model("hifuse_tiny", global_pool="max", **kwargs).eval()
    args = argparse.Namespace(model_kwargs=kwargs, gp="max")
    assert convert(dict(state_dict=trained.state_dict(), args=args), tmp_path) == 0
    x = torch.ones(1, 3, 64, 64)
    assert torch.equal(run_printed_call(capsys.readouterr().out).eval()(x), trained(x))


@pytest.mark.parametrize(
    "options, taken", [([], "averaged (EMA)"), (["--use-ema"], "averaged (EMA)"), (["--no-use-ema"], "trained")]
)
def test_which_weights_were_taken_is_said(narrow, tmp_path, capsys, options, taken):
    trained = narrow(depths=(1, 1, 1, 1)).state_dict()
    averaged = trained | {"head.fc.bias": trained["head.fc.bias"] + 1}
    assert convert(dict(state_dict=trained, state_dict_ema=averaged), tmp_path, *options) == 0
    assert f"of its averaged (EMA) and its trained weights, the {taken} ones were taken" in capsys.readouterr().out
    expected = trained if taken == "trained" else averaged
    assert torch.equal(load_file(tmp_path / "out.safetensors")["head.fc.bias"], expected["head.fc.bias"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"head.fc.bias": None}, "missing: head.fc.bias"),
        ({"head.fc.bias": torch.zeros(3)}, r"head.fc.bias \(3,\) instead of \(7,\)"),
        ({"global_stem.0.weight": torch.zeros(16, 1, 4, 4)}, r"global_stem.0.weight \(16, 1, 4, 4\) instead of"),
        (
            {"stages.0.global_blocks.0.attn.relative_position_bias_table": torch.zeros(169, 5)},
            "num_heads.0. is 5, expected",
        ),
        (
            {"stages.0.global_blocks.0.attn.relative_position_bias_table": torch.zeros(170, 1)},
            r"_table \(170, 1\) instead",
        ),
        ({"stages.2.fusion.norm.weight": torch.zeros(1)}, r"norm.weight \(1,\) instead of"),
        (
            {"stages.2.fusion.norm.bias": torch.zeros(64, dtype=torch.int8)},
            "no floating-point numbers: stages.2.fusion.norm",
        ),
        ({"head.fc.bias": torch.full((7,), torch.nan)}, "not finite, as after a training that diverged: head.fc.bias"),
    ],
)
def test_weights_that_would_not_load_are_not_written(narrow, tmp_path, capsys, change, words):
    changed = {key: value for key, value in (narrow().state_dict() | change).items() if value is not None}
    assert convert(changed, tmp_path) == 1
    assert re.search(rf"error: checkpoint .*in.pth: .*{words}", capsys.readouterr().err)
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_are_not_finite_are_written_on_request(narrow, tmp_path):
    state_dict = narrow().state_dict() | {"head.fc.bias": torch.full((7,), torch.nan)}
    assert convert(state_dict, tmp_path, "--allow-nonfinite") == 0
    assert load_file(tmp_path / "out.safetensors")["head.fc.bias"].isnan().all()


def test_output_that_cannot_be_written_is_refused(tmp_path, capsys):
    save_file({"a": torch.zeros(1)}, tmp_path / "in.safetensors")
    for output, words in (
        ("out.pth", "out.pth must end in .safetensors"),
        ("missing/out.safetensors", "missing, to write out.safetensors in, does not exist"),
    ):
        assert main(["convert", str(tmp_path / "in.safetensors"), str(tmp_path / output)]) == 1
        assert words in capsys.readouterr().err


def test_conversion_that_fails_leaves_the_old_file(tmp_path, capsys):
    (tmp_path / "out.safetensors").write_bytes(b"old")
    assert convert({"conv1.weight": torch.zeros(1)}, tmp_path) == 1
    assert "not those of a HiFuse" in capsys.readouterr().err
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"
