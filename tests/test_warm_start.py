"""The warm start holds ConvNeXt's and Swin's tensors where HiFuse has one of the same role, and its own elsewhere."""

import contextlib
import io
import re

import numpy as np
import pytest
import timm
import torch
from conftest import stand_in_hub
from PIL import Image
from pytest import mark
from safetensors.torch import load_file, save, save_file
from train_like_timm import TRAIN_PY, run_train_py

from hifuse_timm import warm_start
from hifuse_timm.__main__ import main
from hifuse_timm.checkpoint import read_checkpoint
from hifuse_timm.warm_start import Origin, summarize_origins

CONVNEXT_T, SWIN_T = "convnext_tiny.fb_in1k", "swin_tiny_patch4_window7_224.ms_in1k"
CONVNEXT_S, SWIN_S = "convnext_small.fb_in1k", "swin_small_patch4_window7_224.ms_in1k"
SOURCES = dict(hifuse_tiny=(CONVNEXT_T, SWIN_T), hifuse_small=(CONVNEXT_T, SWIN_T), hifuse_base=(CONVNEXT_S, SWIN_S))
DEPTHS = dict(hifuse_tiny=(2, 2, 2, 2), hifuse_small=(2, 2, 6, 2), hifuse_base=(2, 2, 18, 2))


@pytest.fixture(scope="module")
def sources():
    """State dicts of the four source networks, no two tensors of them alike."""
    generator = torch.Generator().manual_seed(0)
    return {
        source: {
            key: torch.rand(value.shape, generator=generator).sub_(0.5).mul_(0.1)
            for key, value in timm.create_model(source, device="meta").state_dict().items()
        }
        for source in (CONVNEXT_T, SWIN_T, CONVNEXT_S, SWIN_S)
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory, sources):
    """A stand-in Hub with the source networks where timm's pretrained configs look for them."""
    with stand_in_hub(tmp_path_factory.mktemp("client")) as server:
        for source, state_dict in sources.items():
            server.add(f"timm/{source}", {"model.safetensors": save(state_dict)})
        yield server


@pytest.fixture(scope="module")
def written(tmp_path_factory, hub):
    """Runs the command for a model, once; gives the file and what was printed."""
    runs = {}

    def run(name: str):
        if name not in runs:
            path = tmp_path_factory.mktemp("warm") / f"{name}.safetensors"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                assert main(["warm-start", name, "--out", str(path)]) == 0
            runs[name] = path, output.getvalue()
        return runs[name]

    return run


@pytest.fixture
def no_hub(monkeypatch, sources):
    """Takes the sources' weights from memory, for what the Hub has no part in."""
    monkeypatch.setattr(warm_start, "_load", lambda source: sources[source])


def counterparts(depths: tuple[int, ...], convnext: dict, swin: dict) -> dict[str, torch.Tensor]:
    """The tensors that a warm start must hold, by our keys, written out stage by stage and block by block."""
    tensors = {}
    for kind in ("weight", "bias"):
        for i in (0, 1):
            tensors[f"local_stem.{i}.{kind}"] = convnext[f"stem.{i}.{kind}"]
        tensors[f"global_stem.0.{kind}"] = swin[f"patch_embed.proj.{kind}"]
        tensors[f"global_stem.1.{kind}"] = swin[f"patch_embed.norm.{kind}"]
    for stage, depth in enumerate(depths):
        ours, theirs = f"stages.{stage}", f"layers.{stage}"
        if stage > 0:
            for kind in ("weight", "bias"):
                tensors[f"{ours}.local_downsample.0.{kind}"] = convnext[f"{ours}.downsample.0.{kind}"]
                tensors[f"{ours}.local_downsample.1.{kind}"] = convnext[f"{ours}.downsample.1.{kind}"]
                tensors[f"{ours}.global_downsample.norm.{kind}"] = swin[f"{theirs}.downsample.norm.{kind}"]
            tensors[f"{ours}.global_downsample.reduction.weight"] = swin[f"{theirs}.downsample.reduction.weight"]
        for block in range(depth):
            local, source = f"{ours}.local_blocks.{block}", f"{ours}.blocks.{block}"
            tensors[f"{local}.conv_dw.weight"] = convnext[f"{source}.conv_dw.weight"][:, :, 2:5, 2:5]
            tensors[f"{local}.conv_dw.bias"] = convnext[f"{source}.conv_dw.bias"]
            shifted, source = f"{ours}.global_blocks.{block}", f"{theirs}.blocks.{block}"
            for kind in ("weight", "bias"):
                tensors[f"{local}.norm.{kind}"] = convnext[f"{ours}.blocks.{block}.norm.{kind}"]
                tensors[f"{shifted}.norm.{kind}"] = swin[f"{source}.norm1.{kind}"]
                tensors[f"{shifted}.attn.qkv.{kind}"] = swin[f"{source}.attn.qkv.{kind}"]
                tensors[f"{shifted}.attn.proj.{kind}"] = swin[f"{source}.attn.proj.{kind}"]
            table = "attn.relative_position_bias_table"
            tensors[f"{shifted}.{table}"] = swin[f"{source}.{table}"]
    return tensors


@mark.parametrize("name", SOURCES)
def test_every_tensor_is_the_sources_or_of_the_initialisation(name, sources, written):
    found = load_file(written(name)[0])
    convnext, swin = (sources[source] for source in SOURCES[name])
    expected = counterparts(DEPTHS[name], convnext, swin)
    torch.manual_seed(0)
    initial = timm.create_model(name, num_classes=0).state_dict()
    assert found.keys() == initial.keys() and expected.keys() < found.keys()
    for key, value in (initial | expected).items():
        assert torch.equal(found[key], value), key
    rest = {re.sub(r"\d+", "*", re.sub(r"fusion\..*", "fusion", key)) for key in found.keys() - expected.keys()}
    assert rest == {
        "stages.*.local_blocks.*.fc.weight",
        "stages.*.local_blocks.*.fc.bias",
        "stages.*.global_blocks.*.fc.weight",
        "stages.*.global_blocks.*.fc.bias",
        "stages.*.fusion",
        "head.norm.weight",
        "head.norm.bias",
    }


@torch.no_grad()
def test_layers_compute_what_they_compute_in_the_sources(sources, written):
    overlay = dict(file=str(written("hifuse_tiny")[0]))
    ours = timm.create_model("hifuse_tiny", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    convnext, swin = timm.create_model(CONVNEXT_T).eval(), timm.create_model(SWIN_T).eval()
    convnext.load_state_dict(sources[CONVNEXT_T])
    swin.load_state_dict(sources[SWIN_T])

    images = torch.randn(1, 3, 224, 224)
    local_map, global_map = ours.local_stem(images), ours.global_stem(images)
    tokens = global_map.permute(0, 2, 3, 1)  # B H W C
    torch.testing.assert_close(local_map, convnext.stem(images))
    torch.testing.assert_close(tokens, swin.patch_embed(images))
    for block, source in zip(ours.stages[0].global_blocks, swin.layers[0].blocks, strict=True):  # the second one shifts
        attended = block.attn(block.norm(tokens.flatten(1, 2)), 56, 56)
        torch.testing.assert_close(attended, source._attn(source.norm1(tokens)).flatten(1, 2))
    stage = ours.stages[1]
    torch.testing.assert_close(stage.local_downsample(local_map), convnext.stages[1].downsample(local_map))
    merged = stage.global_downsample(global_map).permute(0, 2, 3, 1)
    torch.testing.assert_close(merged, swin.layers[1].downsample(tokens))
    middle = torch.zeros(1, 96, 56, 56)
    middle[:, :, 27:30, 27:30] = 1.0  # all that a 3x3 kernel sees from its middle
    outputs = [net.stages[0] for net in (ours, convnext)]
    outputs = outputs[0].local_blocks[0].conv_dw(middle), outputs[1].blocks[0].conv_dw(middle)
    torch.testing.assert_close(*(output[:, :, 28, 28] for output in outputs))


def test_command_says_what_came_from_where_and_what_stays_at_initialisation(written):
    path, text = written("hifuse_small")
    for line in (
        f"from {CONVNEXT_T} (https://huggingface.co/timm/{CONVNEXT_T}, licence apache-2.0):",
        f"from {SWIN_T} (https://huggingface.co/timm/{SWIN_T}, licence mit):",
        "  stages.*.local_blocks.*.conv_dw <- stages.*.blocks.*.conv_dw, the middle 3x3 of 7x7: 24 tensors, "
        f"{10 * (96 * 2 + 192 * 2 + 384 * 6 + 768 * 2):,} parameters",
        "  stages.*.global_blocks.*.attn.qkv <- layers.*.blocks.*.attn.qkv: 24 tensors, "
        f"{sum(depth * 3 * c * (c + 1) for c, depth in ((96, 2), (192, 2), (384, 6), (768, 2))):,} parameters",
        "at HiFuse's own initialisation:",
        "  head.norm: 2 tensors, 1,536 parameters",
    ):
        assert line in text.splitlines()
    totals = re.findall(r"in all ([\d,]+) of ([\d,]+) parameters", text)
    parts, wholes = zip(*((int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in totals), strict=True)
    assert len(totals) == 3 and set(wholes) == {sum(parts)}
    model = timm.create_model("hifuse_small", num_classes=0, device="meta")
    assert sum(parts) == sum(p.numel() for p in model.parameters())
    assert str(path) in text


# What train.py --pretrained --pretrained-path makes of the file


def load_like_train_py(path, num_classes: int | None, name: str = "hifuse_tiny", **kwargs) -> torch.nn.Module:
    overlay = dict(file=str(path), num_classes=-1)
    return timm.create_model(
        name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay, in_chans=3, **kwargs
    )


@mark.parametrize("num_classes, expected", [(2, 2), (1000, 1000), (None, 7)])
def test_train_py_gets_a_classifier_for_any_number_of_classes(written, num_classes, expected):
    path = written("hifuse_tiny")[0]
    model = load_like_train_py(path, num_classes)
    assert model.num_classes == model.head.fc.out_features == expected
    state_dict, loaded = load_file(path), model.state_dict()
    assert loaded.keys() - state_dict.keys() == {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(loaded[key], value) for key, value in state_dict.items())
    assert 0.01 < loaded["head.fc.weight"].std() < 0.03 and not loaded["head.fc.bias"].any()


def test_train_py_gets_a_new_classifier_for_weights_that_have_one(narrow, tmp_path):
    trained = narrow(num_classes=3)
    torch.nn.init.ones_(trained.head.fc.weight)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    for num_classes in (3, 4):
        settings = dict(dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8))
        model = load_like_train_py(tmp_path / "trained.safetensors", num_classes, **settings)
        assert model.head.fc.out_features == num_classes and (model.head.fc.weight != 1).all()
        assert torch.equal(model.local_stem[0].weight, trained.local_stem[0].weight)


@mark.skipif(TRAIN_PY is None, reason="HIFUSE_TIMM_TRAIN_PY does not say where timm's train.py is")
def test_train_py_itself_starts_from_the_file(written, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in "abc":
            (tmp_path / split / label).mkdir(parents=True)
            noise = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / split / label / "1.png")
    path = written("hifuse_tiny")[0]
    settings = "--num-classes 3 --img-size 64 -b 3 --epochs 1 --warmup-epochs 0 --opt sgd --lr 1e-30 --workers 0"
    result = run_train_py(
        *("--model", "hifuse_tiny", "--pretrained", "--pretrained-path", str(path), *settings.split()),
        *("--data-dir", str(tmp_path), "--output", str(tmp_path), "--experiment", "run"),
    )
    assert result.returncode == 0, result.stderr
    trained = read_checkpoint(tmp_path / "run" / "last.pth.tar").state_dict
    assert trained["head.fc.weight"].shape == (3, 768)
    for key, value in load_file(path).items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(trained[key], value, msg=key)


# The seed


def test_seed_sets_what_stays_at_initialisation_and_the_callers_random_numbers_stay(written, no_hub, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    warm_start.warm_start("hifuse_tiny", again)
    origins = warm_start.warm_start("hifuse_tiny", other, seed=1)
    assert torch.equal(torch.rand(3), expected)
    first = written("hifuse_tiny")[0]
    assert first.read_bytes() == again.read_bytes()
    first, other = load_file(first), load_file(other)
    random = {key for key, origin in origins.items() if origin.source is None and first[key].unique().numel() > 1}
    assert {key for key in first if not torch.equal(first[key], other[key])} == random


# What goes wrong


@mark.parametrize(
    "name, out, words",
    [
        ("hifuse_huge", "a.safetensors", "model 'hifuse_huge' is not registered: expected one of hifuse_base"),
        ("hifuse_tiny", "a.pth", "must end in .safetensors"),
        ("hifuse_tiny", "nowhere/a.safetensors", "to write a.safetensors in, does not exist"),
    ],
)
def test_wrong_argument_is_one_clear_error_before_any_download(name, out, words, hub, tmp_path, capsys):
    requests = hub.requests.total()
    assert main(["warm-start", name, "--out", str(tmp_path / out)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and words in output.err and output.out == ""
    assert hub.requests.total() == requests and list(tmp_path.iterdir()) == []


def test_sources_that_cannot_be_had_are_one_clear_error_and_leave_no_file(tmp_path, capsys):
    with stand_in_hub(tmp_path) as server:
        out = ["--out", str(tmp_path / "a.safetensors")]
        assert main(["warm-start", "hifuse_tiny", *out]) == 1
        error = capsys.readouterr().err
        assert f"the weights of {CONVNEXT_T} are not at timm/{CONVNEXT_T} on the Hub ({server.url})" in error
        server.add(f"timm/{CONVNEXT_T}", {"model.safetensors": save({"stem.0.weight": torch.zeros(2)})})
        with server.failing("corrupt"):
            assert main(["warm-start", "hifuse_tiny", *out]) == 1
        assert "SHA-256" in capsys.readouterr().err
        assert main(["warm-start", "hifuse_tiny", *out]) == 1  # whole, but of another network
        assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.glob("*.safetensors")) == list(tmp_path.glob(".*.safetensors*")) == []


def test_summary_names_every_parameter_once():
    origins = {"stages.0.fusion.norm.weight": Origin(None, None, 5), "head.norm.weight": Origin(None, None, 3)}
    origins["local_stem.0.weight"] = Origin(CONVNEXT_T, "stem.0.weight", 2)
    assert summarize_origins(origins).splitlines()[1:3] == [
        "  local_stem.* <- stem.*: 1 tensors, 2 parameters",
        "  in all 2 of 10 parameters",
    ]
