"""Checkpoint files: every layout that loads, and everything that is refused with a reason."""

import argparse
import pickle
import re
import resource
from collections import Counter, OrderedDict

import pytest
import timm
import torch
from conftest import NARROW
from fuzz_checkpoints import load_in_every_way, write_checkpoint
from parity import MODELS, authors_state_dict, narrow_authors_state_dict
from safetensors.torch import save_file

from hifuse_timm import hub
from hifuse_timm.checkpoint import check_output, read_checkpoint, save_weights, unwrap_state_dict
from hifuse_timm.convert import Architecture, check_architecture, checkpoint_filter_fn, convert_state_dict


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model("hifuse_tiny", **NARROW).state_dict()


@pytest.fixture
def state_dict(weights):
    """The weights of a narrow hifuse_tiny, in a dict of its own."""
    return dict(weights)


@pytest.fixture(scope="module")
def authors():
    return narrow_authors_state_dict()


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_and_prefixed_weights_load(state_dict, tmp_path, wrapper, prefix):
    content = OrderedDict((prefix + key, value) for key, value in state_dict.items())
    torch.save({wrapper: content, "epoch": 3, "arch": "hifuse_tiny"} if wrapper else content, tmp_path / "weights.pth")
    assert_same(read_checkpoint(tmp_path / "weights.pth").state_dict, state_dict)
    overlay = dict(file=str(tmp_path / "weights.pth"))
    model = timm.create_model("hifuse_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert_same(model.state_dict(), state_dict)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.module.", "module."]
)
def test_prefixes_of_wrapped_parts_come_off(state_dict, authors, tmp_path, prefix):
    for whole in (state_dict, authors):
        wrapped = {re.sub(r"^((stages|layers1|fu2)\.(\d\.)?)", rf"\1{prefix}", k): v for k, v in whole.items()}
        torch.save(wrapped, tmp_path / "weights.pth")
        found, _ = convert_state_dict(read_checkpoint(tmp_path / "weights.pth").state_dict)
        assert_same(found, convert_state_dict(whole)[0])


def test_parts_of_other_networks_may_be_named_as_a_wrapper_is(tmp_path):
    torch.save({"module.blocks.0.module.weight": torch.ones(1)}, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth").state_dict) == ["blocks.0.module.weight"]


def test_safetensors_and_files_of_old_torch_load(state_dict, tmp_path):
    save_file(state_dict, tmp_path / "weights.safetensors")
    assert_same(read_checkpoint(tmp_path / "weights.safetensors").state_dict, state_dict)
    torch.save(state_dict, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "weights.pt").state_dict, state_dict)


@pytest.fixture
def averaged(state_dict):
    return {key: value + 1 for key, value in state_dict.items()}


@pytest.fixture
def trained_file(state_dict, averaged, tmp_path):
    """What train.py --model-ema saves."""
    args = argparse.Namespace(lr=0.1, model_ema=True)
    content = dict(epoch=14, arch="hifuse_tiny", state_dict=state_dict, state_dict_ema=averaged, args=args, version=2)
    torch.save(content, tmp_path / "last.pth.tar")
    return tmp_path / "last.pth.tar"


def test_averaged_weights_are_taken_where_there_are_some_unless_the_others_are_asked_for(
    state_dict, averaged, trained_file
):
    for use_ema, expected in ((None, averaged), (True, averaged), (False, state_dict)):
        found = read_checkpoint(trained_file, use_ema)
        assert_same(found.state_dict, expected)
        assert (found.averaged, found.has_averaged) == (use_ema is not False, True)
        assert (found.training_args, found.epoch) == ({"lr": 0.1, "model_ema": True}, 14)


def test_file_with_one_kind_of_weights_says_which(state_dict, tmp_path):
    for key, averaged in (("state_dict", False), ("state_dict_ema", True), ("model_ema", True)):
        torch.save({key: state_dict}, tmp_path / "last.pth.tar")
        found = read_checkpoint(tmp_path / "last.pth.tar")
        assert_same(found.state_dict, state_dict)
        assert (found.averaged, found.has_averaged, found.training_args, found.epoch) == (averaged, False, {}, None)
        with pytest.raises(ValueError, match="averaged .EMA. weights alone" if averaged else "no averaged .EMA."):
            read_checkpoint(tmp_path / "last.pth.tar", use_ema=not averaged)


def test_pretrained_takes_the_weights_that_the_commands_take_and_says_so(averaged, trained_file, caplog):
    overlay = dict(file=str(trained_file))
    model = timm.create_model("hifuse_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert_same(model.state_dict(), averaged)
    assert "last.pth.tar holds averaged (EMA) and trained weights: the averaged ones are taken" in caplog.text


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_file_is_read_once_and_what_was_read_is_loaded(narrow, state_dict, tmp_path, monkeypatch, ending):
    path = tmp_path / f"weights{ending}"
    save_file(state_dict, path) if ending == ".safetensors" else torch.save(state_dict, path)
    read = hub.read_checkpoint

    def read_then_spoil(path):
        checkpoint = read(path)
        path.write_bytes(bytes(path.stat().st_size))
        return checkpoint

    monkeypatch.setattr(hub, "read_checkpoint", read_then_spoil)
    assert_same(narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).state_dict(), state_dict)


@pytest.mark.parametrize("kwargs", [{}, dict(features_only=True)])
def test_network_keeps_no_second_copy_of_its_weights(narrow, state_dict, kwargs):
    model = narrow(pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict), **kwargs)
    configs = [module.pretrained_cfg for module in model.modules() if hasattr(module, "pretrained_cfg")]
    assert configs and not any("state_dict" in config for config in configs)


def test_output_is_checked_before_the_work(tmp_path):
    assert check_output(tmp_path / "weights.safetensors") == tmp_path / "weights.safetensors"
    (tmp_path / "folder.safetensors").mkdir()
    for name, error, words in (
        ("weights.pth", ValueError, "must end in .safetensors"),
        ("missing/weights.safetensors", FileNotFoundError, "missing, to write weights.safetensors in, does not exist"),
        ("folder.safetensors", FileExistsError, "is a folder, expected a file"),
    ):
        with pytest.raises(error, match=words):
            check_output(tmp_path / name)


def test_full_disk_is_one_line(state_dict, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"weights.safetensors cannot be written: [^\n]*File too large[^\n]*$"):
            save_weights(state_dict, tmp_path / "weights.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_saved_weights_are_whole_or_not_there(state_dict, tmp_path):
    save_weights(state_dict, tmp_path / "weights.safetensors")
    assert_same(read_checkpoint(tmp_path / "weights.safetensors").state_dict, state_dict)
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(ValueError, match="cannot be saved: Some tensors share memory"):
        save_weights(dict.fromkeys("ab", torch.zeros(2)), tmp_path / "weights.safetensors")
    assert_same(read_checkpoint(tmp_path / "weights.safetensors").state_dict, state_dict)
    assert len(list(tmp_path.iterdir())) == 2


# The authors' layout


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("dense", [False, True])
def test_authors_weights_name_their_variant(size, dense):
    # their shapes alone, without memory behind them
    shapes = MODELS["state_dict_shapes"][size]
    authors = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    if dense:
        for key in [k for k in authors if k.endswith("residual.conv1.conv.weight")]:
            authors[key] = torch.empty(shapes[key][0], shapes[key][0], 3, 3, device="meta")
    converted, dropped = convert_state_dict(authors)
    architecture = Architecture.of(converted)
    assert architecture.variant == f"hifuse_{size}" + ("_dense" if dense else "")
    assert (architecture.num_classes, architecture.in_chans) == (7, 3)
    model = timm.create_model(architecture.variant, device="meta")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert set(MODELS["never_executed_parameters_of_tiny"]) <= set(dropped) or size != "tiny"


def test_weights_in_our_layout_pass_unchanged(state_dict):
    converted, dropped = convert_state_dict(state_dict)
    assert_same(converted, state_dict)
    assert dropped == {}


# Refused


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_says_so(state_dict, tmp_path, ending, kept):
    path = tmp_path / f"weights{ending}"
    save_file(state_dict, path) if ending == ".safetensors" else torch.save(state_dict, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="truncated|damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x80\x02}q\x00.", b"\x80\x02]q\x00.", bytes(range(256))])
def test_file_that_is_no_checkpoint_says_so(tmp_path, content):
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"checkpoint .*{name}"):
            read_checkpoint(tmp_path / name)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(state_dict, tmp_path, legacy):
    content = dict(state_dict=state_dict, extra=Trap(tmp_path / "sprung"))
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    for name in ("weights.pth", "bare.pth"):
        with pytest.raises(ValueError, match=rf"{name} needs .*open to be unpickled.*refused.*state_dict\(\)"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_whole_pickled_network_is_refused(narrow, tmp_path):
    torch.save(narrow(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"hifuse_timm\.hifuse\.HiFuse.*save its state_dict\(\)"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(note="best"), "note is a str"),
        (dict(epoch=3), "epoch is a int"),
    ],
)
def test_weights_that_are_not_all_tensors_are_refused(state_dict, tmp_path, change, words):
    for content in (state_dict | change, {"state_dict": state_dict | change}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=f"no state dict of tensors: {words}"):
            read_checkpoint(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=words):
        checkpoint_filter_fn(state_dict | change, torch.nn.Identity())


def test_empty_and_other_content_is_refused(tmp_path):
    for content, words in (({}, "it is empty"), (torch.zeros(1), "holds a Tensor"), ([1], "holds a list")):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=words):
            read_checkpoint(tmp_path / "weights.pth")


def load_into(narrow, state_dict: dict, name: str = "hifuse_tiny", **kwargs):
    overlay = dict(state_dict=state_dict)
    return narrow(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def test_weights_of_another_network_are_refused(narrow, state_dict):
    with pytest.raises(ValueError, match=r"not those of a HiFuse: their keys are conv1\.0\.weight"):
        load_into(narrow, timm.create_model("resnet10t").state_dict())
    with pytest.raises(ValueError, match=r"checkpoint is of .*\(2, 2, 6, 2\).*, the model is .*\(2, 2, 2, 2\)"):
        load_into(narrow, narrow("hifuse_small").state_dict())
    del state_dict["stages.1.fusion.norm.weight"]
    with pytest.raises(ValueError, match=r"missing: stages\.1\.fusion\.norm\.weight"):
        load_into(narrow, state_dict)


def test_dense_weights_in_a_depthwise_network_name_the_dense_one(narrow):
    with pytest.raises(ValueError, match=r"dense IRMLP.*hifuse_\*_dense"):
        load_into(narrow, narrow("hifuse_tiny_dense").state_dict())
    with pytest.raises(ValueError, match="hifuse_tiny, hifuse_small or hifuse_base hold such"):
        load_into(narrow, narrow().state_dict(), "hifuse_tiny_dense")


def test_dense_weights_of_the_authors_name_the_variant_to_create(full_width):
    authors = authors_state_dict("tiny")
    for i, dim in enumerate((96, 192, 384, 768), 1):
        authors[f"fu{i}.residual.conv1.conv.weight"] = torch.zeros(1).expand(3 * dim, 3 * dim, 3, 3)
    with pytest.raises(ValueError, match="create hifuse_tiny_dense instead"):
        checkpoint_filter_fn(authors, full_width("hifuse_tiny"))


# Files from strangers: whatever they hold, one clear error


def write_args(state_dict, tmp_path, args: dict):
    torch.save(dict(state_dict=state_dict, args=argparse.Namespace(**args)), tmp_path / "last.pth.tar")
    return tmp_path / "last.pth.tar"


def test_training_arguments_of_every_right_kind_are_taken(state_dict, tmp_path):
    args = dict(model="hifuse_tiny", num_classes=None, in_chans=1, input_size=[1, 64, 64], img_size=None, crop_pct=0.9)
    args |= dict(mean=[0.3], std=(0.2,), interpolation="", input_img_mode="L", gp="avg", bn_eps=1e-5, class_map="")
    args |= dict(model_kwargs={"dims": (16, 32), "dense": True}, epochs=300, lr=1e-4, aa=None, model_ema=True, seed=42)
    args |= dict(scale=[0.08, 1.0], device_modules=["hifuse_timm"], world_size=1)
    assert read_checkpoint(write_args(state_dict, tmp_path, args)).training_args == args


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("model", 5, "5, expected a line of text"),
        ("num_classes", -1, "-1, expected a whole number from 0"),
        ("in_chans", 2.5, "2.5, expected a whole number from 1"),
        ("input_size", 224, "224, expected channels, height and width"),
        ("input_size", [3, 224], r"\[3, 224\], expected channels, height and width"),
        ("img_size", 10**9, "1000000000, expected a whole number from 1 to 4,096"),
        ("img_size", True, "True, expected a whole number"),
        ("crop_pct", float("nan"), "nan, expected a number from 0.1 to 2"),
        ("crop_mode", "all", "'all', expected one of center, squash, border"),
        ("mean", 0.5, "0.5, expected a list of numbers, one or one a channel"),
        ("mean", [], r"\[\], expected a list of numbers"),
        ("std", [0.2, 0.0], r"\[0.2, 0.0\], expected a list of numbers"),
        ("interpolation", "best", "'best', expected one of nearest, bilinear"),
        ("input_img_mode", "PNG", "'PNG', expected one of L"),
        ("gp", ["avg"], r"\['avg'\], expected a line of text"),
        ("bn_eps", "1e-5", "'1e-5', expected a number from 1e-12 to 1"),
        ("model_kwargs", ["dims"], r"\['dims'\], expected a dict of plain values"),
        ("model_kwargs", {1: 2}, "a dict that is no plain value, expected a dict of plain values"),
        ("model_kwargs", {"dims": torch.zeros(4)}, "a dict that is no plain value"),
        ("model_kwargs", {"dims": [[0] * 40] * 40}, "a dict that is no plain value"),
        ("class_map", ["a"], r"\['a'\], expected a line of text"),
        ("epochs", "300", "'300', expected a whole number"),
        ("lr", {}, r"\{\}, expected a number"),
        ("opt", "sgd\n# Accuracy: 100%", r"'sgd\\n# Accuracy: 100%', expected a line of text"),
        ("model_ema", "yes", "'yes', expected True or False"),
    ],
)
def test_training_argument_of_the_wrong_kind_is_named_with_what_is_right(state_dict, tmp_path, name, value, words):
    with pytest.raises(ValueError, match=rf"last.pth.tar: its training argument {name} is {words}") as info:
        read_checkpoint(write_args(state_dict, tmp_path, {name: value}))
    assert "\n" not in str(info.value)


def test_training_arguments_that_are_not_used_are_left_out_unless_plain(state_dict, tmp_path):
    endless = []
    endless.append(endless)
    args = dict(device=torch.device("cpu"), weights=torch.zeros(2), endless=endless, log_wandb=False, epochs=3)
    assert read_checkpoint(write_args(state_dict, tmp_path, args)).training_args == dict(log_wandb=False, epochs=3)
    with pytest.raises(ValueError, match="training arguments have a int as a name"):
        args = argparse.Namespace()
        vars(args)[1] = 2
        torch.save(dict(state_dict=state_dict, args=args), tmp_path / "last.pth.tar")
        read_checkpoint(tmp_path / "last.pth.tar")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: torch.zeros(3, dtype=torch.complex64), "a complex tensor"),
        (lambda: torch.zeros(3, dtype=torch.complex64).conj().imag, "a complex tensor, or a view of one"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.eye(3).to_sparse(), "a sparse or nested tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "a sparse or nested tensor"),
        (lambda: torch.ones(3, device="meta"), "a meta tensor, which has no values"),
        (lambda: torch.ones(3).as_subclass(type("Masked", (torch.Tensor,), {})), "a Masked"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch advises against some of these
def test_tensor_that_is_no_plain_one_is_named(state_dict, tmp_path, make, words):
    value = make()
    content = {"state_dict": state_dict | {"head.fc.bias": value}}
    with pytest.raises(ValueError, match=f"no state dict of tensors: head.fc.bias is {words}"):
        unwrap_state_dict(content)
    if type(value) is torch.Tensor:
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=f"weights.pth: .*: head.fc.bias is {words}"):
            read_checkpoint(tmp_path / "weights.pth")


def test_tensor_keeps_nothing_that_was_set_on_it(tmp_path):
    value = torch.ones(3)
    value.isfinite = value.is_neg = value.detach = "no function"
    torch.save({"weight": value}, tmp_path / "weights.pth")
    [found] = read_checkpoint(tmp_path / "weights.pth").state_dict.values()
    assert vars(found) == {} and torch.equal(found, torch.ones(3))


@pytest.mark.parametrize(
    "key, words",
    [
        (5, "a int is among its keys"),
        (("a", "b"), "a tuple is among its keys"),
        ("a\nerror: b", r"'a\\nerror: b' is among its keys"),
        ("\x1b[31m", r"'\\x1b\[31m' is among its keys"),
        ("\udcff", r"'\\udcff' is among its keys"),
        ("x" * 1000, "'xxx.* is among its keys"),
        ("module.local_stem.0.bias", "module.local_stem.0.bias and another of its keys mean local_stem.0.bias"),
        ("local_stem._orig_mod.0.bias", "local_stem._orig_mod.0.bias and another of its keys mean local_stem.0.bias"),
        ("local_stem.module.0.bias", "some of their keys are the same but for .module"),
    ],
)
def test_key_that_names_no_weight_of_its_own_is_refused(state_dict, tmp_path, key, words):
    torch.save(state_dict | {key: torch.zeros(16)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=words) as info:
        convert_state_dict(read_checkpoint(tmp_path / "weights.pth").state_dict)
    assert str(info.value).isprintable() and len(str(info.value)) < 500


def test_values_that_are_stored_once_and_claimed_often_are_refused(state_dict, tmp_path):
    for value in (torch.zeros(1).expand(100_000, 100_000), torch.zeros(100).as_strided((100_000, 90), (0, 1))):
        torch.save(state_dict | {"head.fc.weight": value}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"would take [\d,]+ bytes .* as head.fc.weight of shape \(100000, "):
            read_checkpoint(tmp_path / "weights.pth")


READ_SHAPES = [
    "local_stem.0.weight",
    "head.fc.weight",
    "stages.0.local_blocks.0.fc.weight",
    "stages.3.local_blocks.0.fc.weight",
    "stages.2.global_blocks.0.attn.relative_position_bias_table",
    "stages.0.fusion.irmlp.conv.weight",
]


@pytest.mark.parametrize("key", READ_SHAPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 0), (2, 2, 2)])
def test_weight_of_other_dimensions_is_named(state_dict, key, shape):
    with pytest.raises(ValueError, match=rf"{re.escape(key)} has the shape {re.escape(str(shape))}, expected"):
        Architecture.of(state_dict | {key: torch.zeros(shape)})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"head.fc.weight": torch.zeros(7, 5)}, r"of another shape: head.fc.weight \(7, 5\) instead of \(7, 128\)"),
        ({"head.fc.bias": torch.zeros(3)}, r"of another shape: head.fc.bias \(3,\) instead of \(7,\)"),
        ({"head.fc.bias": None}, "missing: head.fc.bias"),
        ({"head.fc.weight": None}, "unexpected: head.fc.bias"),
        (
            {"global_stem.0.weight": torch.zeros(16, 1, 4, 4)},
            r"shape: global_stem.0.weight .* instead of \(16, 3, 4, 4\)",
        ),
        (
            {"local_stem.0.bias": torch.zeros(16, dtype=torch.int64)},
            "no floating-point numbers: local_stem.0.bias torch.int64",
        ),
        (
            {"local_stem.0.bias": torch.zeros(16, dtype=torch.bool)},
            "no floating-point numbers: local_stem.0.bias torch.bool",
        ),
        ({"stages.0.other.weight": torch.zeros(1)}, "unexpected: stages.0.other.weight"),
        (
            {"stages.3.local_blocks.1.fc.weight": None},
            r"the model is .* \(missing: stages.3.local_blocks.1.fc.weight\)",
        ),
        ({"local_stem.0.weight": None}, "keys are local_stem.0.bias, .*; expected local_stem.0.weight"),
        ({"stages.1.global_blocks.0.attn.relative_position_bias_table": None}, "not whole: .*_table is missing"),
    ],
)
def test_weights_that_do_not_fit_say_which_and_what_would(state_dict, change, words):
    changed = {key: value for key, value in (state_dict | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        check_architecture(changed, state_dict)


def test_number_of_stages_has_a_limit(state_dict):
    many = {f"stages.{i}.local_blocks.0.fc.weight": torch.zeros(1, 1) for i in range(10_000)}
    with pytest.raises(ValueError, match="10000 stages, expected at most 8"):
        Architecture.of(state_dict | many)
    authors = {f"fu{i}.residual.conv1.conv.weight": torch.zeros(1) for i in range(1, 10_001)}
    with pytest.raises(ValueError, match="10000 stages, expected at most 8"):
        convert_state_dict(authors | {"patch_embed.proj.weight": torch.zeros(1)})


def test_weights_that_are_not_finite_are_refused_as_pretrained(narrow, state_dict, tmp_path):
    model = narrow()
    for value in (torch.nan, torch.inf, -torch.inf, 1e300):  # the last is infinite in float32
        state_dict["local_stem.0.bias"] = torch.full((16,), value, dtype=torch.float64)
        with pytest.raises(ValueError, match="weights are not finite, .*: local_stem.0.bias$"):
            checkpoint_filter_fn(state_dict, model)
    torch.save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights are not finite, .*: local_stem.0.bias$"):
        narrow(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "weights.pth")))


@pytest.mark.filterwarnings("ignore")
def test_damaged_and_hostile_checkpoints_load_or_are_refused(tmp_path):
    taken = Counter(load_in_every_way(write_checkpoint(seed, tmp_path)) for seed in range(25))
    assert taken[True] and taken[False]
