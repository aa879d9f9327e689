"""`export`: files for other runtimes that agree with PyTorch, say what they are, and stand in for a checkpoint."""

import argparse
import csv
import functools
import gc
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from conftest import NARROW
from PIL import Image
from torch import nn

import hifuse_timm.exported
from hifuse_timm.__main__ import main
from hifuse_timm.checkpoint import checksum_weights
from hifuse_timm.export import export
from hifuse_timm.export.comparison import read_images
from hifuse_timm.export.tokens import on_tokens
from hifuse_timm.export.writers import WRITERS
from hifuse_timm.exported import METADATA, Metadata, read_exported
from hifuse_timm.loading import load_for_inference, load_trained

CLASSES = ["polyp", "Übergang", "normal, or so"]
FILES = {"onnx": "net.onnx", "openvino": "net.xml", "pt2": "net.pt2"}
ALL = [
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
    ("pt2", "float32"),
    ("pt2", "bfloat16"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared dataset of three classes."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, number in (("val", 48), ("test", 7)):
        for i in range(number):
            folder = root / split / CLASSES[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            colours = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            colours.resize((36, 40 + i), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (root / "dataset.json").write_text(json.dumps(dict(name="own", title="Own", classes=CLASSES)))
    return root


def save_checkpoint(path: Path, name: str, head: str, **args) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **args.get("model_kwargs", {}))
    state_dict = model.state_dict()
    state_dict[head] = 20 * state_dict[head]
    args = dict(img_size=32, mean=[0.3, 0.4, 0.5], num_classes=3) | args
    torch.save(dict(state_dict=state_dict, args=argparse.Namespace(**args)), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("training") / "last.pth.tar", "test_convnext", "head.fc.weight")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, data, checkpoint):
    """Gives the file of a format and precision, exported once; tests must leave it as they find it."""

    @functools.cache
    def make(format: str, precision: str = "float32", dynamic_batch: bool = True) -> Path:
        out = tmp_path_factory.mktemp(f"{format}-{precision}") / FILES[format]
        options = dict(precision=precision, data_dir=data, dynamic_batch=dynamic_batch)
        export("test_convnext", checkpoint, out=out, format=format, **options)
        return out

    return make


@torch.inference_mode()
def share_of_spread(path: Path, trained, data: Path) -> float:
    """The largest difference between the logits of a file and PyTorch's by their spread, by 1 and by 3 images."""
    files = sorted(map(str, (data / "test").rglob("*.png")))
    images = read_images(trained, files)
    model, expected = read_exported(path, trust_pt2=True), trained.model(images)
    found = [torch.cat([model(batch) for batch in images.split(number)]) for number in (1, 3)]
    return ((torch.stack(found) - expected).abs().max() / (expected.max() - expected.min())).item()


# What is written


@pytest.mark.parametrize("format, precision", ALL)
def test_file_gives_the_logits_of_pytorch_at_any_batch_size(format, precision, exported, checkpoint, data):
    trained = load_trained("test_convnext", checkpoint, device="cpu")
    difference = share_of_spread(exported(format, precision), trained, data)
    most = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.1}[precision]
    assert difference < most
    if precision != "float32":  # it computes in another
        assert difference > 1e-4


@pytest.mark.parametrize("format", FILES)
def test_file_for_one_image_runs_a_batch_one_by_one(format, exported, checkpoint, data):
    path = exported(format, dynamic_batch=False)
    assert not read_exported(path, trust_pt2=True).metadata.dynamic_batch
    assert share_of_spread(path, load_trained("test_convnext", checkpoint, device="cpu"), data) < 1e-5


@pytest.mark.parametrize("format, dynamic_batch", [("openvino", False), ("pt2", True)])
def test_hifuse_is_fused_and_keeps_its_logits(format, dynamic_batch, data, tmp_path):
    args = dict(model_kwargs=NARROW | dict(depths=(1, 1, 1, 1)), img_size=64)
    checkpoint = save_checkpoint(tmp_path / "last.pth.tar", "hifuse_tiny", "head.fc.weight", **args)
    out = tmp_path / FILES[format]
    found = export("hifuse_tiny", checkpoint, out=out, format=format, dynamic_batch=dynamic_batch)
    trained = load_trained("hifuse_tiny", checkpoint, device="cpu")
    assert share_of_spread(out, trained, data) < 1e-5
    assert found.comparison.is_noise and found.metadata.weights == checksum_weights(trained.model.state_dict())
    content = out.read_bytes().lower()
    assert b"batchnorm" not in content and b"batch_norm" not in content


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 96), (300, 230)])
def test_hifuse_on_tokens_gives_the_same_logits(size, narrow):
    model = narrow(depths=(1, 2, 2, 1), img_size=size, num_classes=7)
    for norm in filter(lambda module: isinstance(module, nn.BatchNorm2d), model.modules()):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, *size)
    expected = model(images)
    assert on_tokens(model, size) is model  # which is not fused
    found = on_tokens(model.fuse(), size)
    torch.testing.assert_close(found(images), expected, rtol=1e-5, atol=1e-6)
    program = torch.export.export(found, (images,))
    five = [node for node in program.graph.nodes if "permute" in str(node.target) and len(node.args[1]) == 5]
    assert len(five) == 1  # the head's, of a single token
    assert not any("roll" in str(node.target) for node in program.graph.nodes)
    local = narrow(branches="local").fuse()
    assert on_tokens(local, size) is local


@pytest.mark.parametrize("format, precision", ALL)
def test_file_says_what_train_py_left(format, precision, exported, checkpoint):
    path = exported(format, precision)
    metadata = read_exported(path, trust_pt2=True).metadata
    trained = load_trained("test_convnext", checkpoint, device="cpu", classes=CLASSES)
    again = load_for_inference("test_convnext", path, trust_pt2=True)
    assert metadata.classes == CLASSES and again.class_names == trained.class_names
    assert metadata.weights == checksum_weights(trained.model.state_dict())
    assert (metadata.architecture, metadata.format, metadata.precision) == ("test_convnext", format, precision)
    assert metadata.versions["torch"] == torch.__version__ and ("nncf" in metadata.versions) == (precision == "int8")
    expected = {key: list(v) if isinstance(v, tuple) else v for key, v in trained.data_config.items()}
    assert metadata.transform == expected and repr(again.transform) == repr(trained.transform)
    assert again.image_mode == trained.image_mode == "RGB"


@pytest.mark.parametrize("format, precision", ALL)
def test_file_has_no_paths_of_the_machine(format, precision, exported):
    path = exported(format, precision)
    for file in path.parent.iterdir():
        content = file.read_bytes()
        assert str(Path(torch.__file__).parents[1]).encode() not in content
        assert str(Path(hifuse_timm.__file__).parents[1]).encode() not in content


def test_onnx_has_names_that_a_reader_can_rely_on(exported):
    model = onnx.load(exported("onnx"))
    onnx.checker.check_model(model)
    ((images,), (logits,)) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [0, 3, 32, 32]


# In the place of a checkpoint


def evaluate(data, checkpoint, out, *options) -> int:
    command = ["evaluate", "--model", "test_convnext", "--checkpoint", checkpoint, "--data-dir", data, "--workers", "0"]
    command += ["--device", "cpu", "--resamples", "9", "--predictions", out / "e.csv", "--json", out / "e.json"]
    return main([*map(str, [*command, *options])])


def read(path) -> tuple[list[dict], np.ndarray]:
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return rows, np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])


@pytest.mark.parametrize("format", FILES)
def test_evaluate_and_predict_give_the_table_of_the_checkpoint(format, exported, checkpoint, data, tmp_path, capsys):
    folders = [tmp_path / name for name in ("checkpoint", "file")]
    tables = []
    for folder, path in zip(folders, (checkpoint, exported(format)), strict=True):
        folder.mkdir()
        assert evaluate(data, path, folder, "--trust-pt2", "--batch-size", "3") == 0
        tables.append(capsys.readouterr().out.split("\n\n")[1:3])
        command = ["predict", data / "test", "--model", "test_convnext", "--checkpoint", path, "--trust-pt2"]
        command += ["--csv", folder / "p.csv", "--data-dir", data, "--workers", "0", "--device", "cpu"]
        assert main([*map(str, command)]) == 0
        capsys.readouterr()
    assert tables[0] == tables[1] and "accuracy" in tables[0][0]
    for name in ("e.csv", "p.csv"):
        (rows, probs), (others, other_probs) = (read(folder / name) for folder in folders)
        assert len(rows) == 7 and len({row["predicted"] for row in rows}) > 1
        assert [row["predicted"] for row in rows] == [row["predicted"] for row in others]
        assert np.allclose(probs, other_probs, rtol=0, atol=1e-5)
    conditions = json.loads((folders[1] / "e.json").read_text())["conditions"]
    assert conditions["checkpoint"] == str(exported(format)) and conditions["input_size"] == [3, 32, 32]


def test_evaluate_says_in_what_a_file_computes(exported, data, tmp_path):
    assert evaluate(data, exported("openvino", "bfloat16"), tmp_path) == 0
    assert json.loads((tmp_path / "e.json").read_text())["conditions"]["precision"] == "bfloat16"


def test_table_of_a_file_is_not_gone_on_with_by_another(exported, data, tmp_path, monkeypatch, capsys):
    def predict(path, *options) -> int:
        command = ["predict", data / "test", "--model", "test_convnext", "--checkpoint", path, "--csv"]
        return main([*map(str, [*command, tmp_path / "p.csv", "--workers", "0", "--device", "cpu", *options])])

    def interrupt(table, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr("hifuse_timm.predict.table.Table.write", interrupt)
    assert predict(exported("onnx")) == 130
    monkeypatch.undo()
    assert predict(exported("onnx", "int8"), "--resume") == 1
    assert "was begun" in capsys.readouterr().err
    assert predict(exported("onnx"), "--resume") == 0


@pytest.mark.parametrize(
    "options, fault",
    [
        (["--precision", "bfloat16"], "precision bfloat16 cannot be chosen for"),
        (["--img-size", "64"], "img_size cannot be chosen for"),
        (["--model-kwargs", "drop_rate=0.1"], "model_kwargs cannot be chosen for"),
        (["--no-use-ema", "--mean", "0.5"], "mean cannot be chosen for"),
        (["--crop-mode", "squash"], "crop_mode cannot be chosen for"),
        (["--device", "meta"], "device meta is not for"),
        (["--model", "test_vit"], "is of test_convnext, not of model test_vit"),
        (["--class-map", "two.txt"], "has 3 classes, class map two.txt has 2"),
    ],
)
def test_what_a_file_settles_cannot_be_chosen(options, fault, exported, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text("polyp\nnormal\n")
    assert evaluate(data, exported("onnx"), tmp_path, *options) == 1
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["explain", "publish", "export"])
def test_commands_that_need_the_network_itself_refuse_a_file(command, exported, data, tmp_path, capsys):
    path = exported("onnx")
    options = {
        "explain": [next((data / "test").rglob("*.png")), "--out", tmp_path / "out.png"],
        "publish": ["--data-dir", data, "--repo-id", "a/b", "--dry-run", tmp_path / "out"],
        "export": ["--format", "onnx", "--out", tmp_path / "out.onnx"],
    }[command]
    model = "hifuse_tiny" if command == "publish" else "test_convnext"
    assert main([command, *map(str, ["--model", model, "--checkpoint", path, *options])]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1 and not any(tmp_path.iterdir())


# What cannot be


def run_export(checkpoint, out, *options) -> int:
    command = ["export", "--model", "test_convnext", "--checkpoint", checkpoint, "--out", out]
    return main([*map(str, [*command, *options])])


@pytest.mark.parametrize("format", FILES)
def test_file_that_does_not_agree_is_not_written_and_what_was_there_stays(
    format, exported, checkpoint, data, tmp_path, monkeypatch, capsys
):
    out = tmp_path / FILES[format]
    files = [out, out.with_suffix(".bin")] if format == "openvino" else [out]
    for file in files:
        file.write_bytes(b"what was there")
    good = [exported(format).with_suffix(file.suffix) for file in files]
    monkeypatch.setitem(WRITERS, format, lambda *args: [shutil.copy(file, args[-1].parent) for file in good])
    wrong = read_exported(exported(format), trust_pt2=True)
    monkeypatch.setattr(wrong, "compute", lambda images, compute=wrong.compute: compute(images) + 0.1)
    monkeypatch.setattr("hifuse_timm.export.exporting.read_exported", lambda *args, **options: wrong)
    assert run_export(checkpoint, out, "--format", format, "--data-dir", data, "--dynamic-batch") == 1
    error = capsys.readouterr().err
    assert "does not agree with PyTorch and is not written" in error and error.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == dict.fromkeys(files, b"what was there")


def test_command_prints_what_was_taken_and_how_it_compares(checkpoint, data, tmp_path, capsys):
    (tmp_path / "net.pt2").write_bytes(b"what was there")
    assert run_export(checkpoint, tmp_path / "net.pt2", "--format", "pt2", "--data-dir", data) == 0
    printed = capsys.readouterr().out
    for part in (f"weights: trained weights in {checkpoint}", "named by", "on 48 images of val", "a quick look"):
        assert part in printed
    assert printed.splitlines()[-1] == f"written: {tmp_path / 'net.pt2'}"
    assert (tmp_path / "net.pt2").read_bytes()[:4] == b"PK\3\4"


@pytest.mark.parametrize(
    "options, fault",
    [
        (["--format", "onnx", "--precision", "bfloat16"], "expected one of onnx: float32, int8; openvino: float32, bf"),
        (["--format", "pt2", "--precision", "int8"], "precision 'int8' is not there for format pt2"),
        (["--format", "onnx", "--precision", "int8"], "precision int8 is calibrated on images of val: give data_dir"),
        (["--format", "openvino"], "must end in .xml for format openvino"),
        (["--format", "onnx", "--data-dir", "."], "val, on whose images int8 is calibrated and all is compared, is no"),
        (["--format", "onnx", "--out", "gone/net.onnx"], "gone, to write net.onnx in, does not exist"),
        (["--format", "openvino", "--out", "net.xml"], "net.bin would be replaced, and is of no net.xml"),
    ],
)
def test_what_cannot_be_exported_is_said_before_long_work(options, fault, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.bin").write_bytes(b"of something else")
    monkeypatch.setattr("hifuse_timm.export.exporting.load_trained", {}.__getitem__)
    assert run_export(checkpoint, "net.onnx", *options) == 1
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]


@pytest.mark.parametrize(
    "library, extra, options",
    [
        ("onnxscript", "export", ["--format", "onnx", "--out", "net.onnx"]),
        ("openvino", "export", ["--format", "openvino", "--out", "net.xml"]),
        ("nncf", "int8", ["--format", "onnx", "--out", "net.onnx", "--precision", "int8", "--data-dir", "."]),
    ],
)
def test_missing_library_is_named_with_its_extra(library, extra, options, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    assert run_export(checkpoint, *options[3:4], *options) == 1
    error = capsys.readouterr().err
    assert f"error: {library} cannot be imported" in error and f"in a clone pip install -e '.[{extra}]'\n" in error


def test_nothing_is_sent_to_the_makers_of_the_libraries(exported):
    exported("openvino", "int8")
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


def test_ctrl_c_is_no_fault_after_files_were_read_and_dropped(exported):
    read = [read_exported(exported("openvino", precision)) for precision in ("float32", "bfloat16")]
    while read:
        del read[0]
        gc.collect()
    pid = os.fork()  # a fault ends that process, and not the tests
    if not pid:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


# Files of strangers


def rewrite(path: Path, out: Path, change) -> Path:
    """Write an ONNX file after a change."""
    model = onnx.load(path)
    change(model)
    out.write_bytes(model.SerializeToString())
    return out


def set_external(tensor) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def hide_in_branch(model) -> None:
    """Put weights that lie elsewhere into a graph within a node."""
    tensor = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], [0.0])
    set_external(tensor)
    node = onnx.helper.make_node("Constant", [], ["hidden"], value=tensor)
    branch = onnx.helper.make_graph([node], "branch", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("change", [lambda model: set_external(model.graph.initializer[0]), hide_in_branch])
def test_onnx_with_weights_in_other_files_is_refused(change, exported, tmp_path):
    path = rewrite(exported("onnx"), tmp_path / "net.onnx", change)
    with pytest.raises(ValueError, match="has weights in other files, whose names it chooses"):
        read_exported(path)


def test_xml_that_is_onnx_is_refused(exported, tmp_path):
    (tmp_path / "net.xml").write_bytes(exported("onnx").read_bytes())
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="net.xml is no XML"):
        read_exported(tmp_path / "net.xml")


def test_pt2_is_not_opened_without_trust(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.export, "load", {}.__getitem__)
    (tmp_path / "net.pt2").write_bytes(b"anything")
    assert evaluate(data, tmp_path / "net.pt2", tmp_path) == 1
    error = capsys.readouterr().err
    assert "can run any code" in error and "--trust-pt2" in error and error.count("\n") == 1


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("length", [0, 100, 0.5])
def test_truncated_file_is_one_error(format, length, exported, tmp_path):
    for file in exported(format).parent.iterdir():
        content = file.read_bytes()
        is_cut = file.suffix != ".bin"
        (tmp_path / file.name).write_bytes(
            content[: int(length if length >= 1 else length * len(content))] if is_cut else content
        )
    with pytest.raises(ValueError, match=FILES[format]) as caught:
        read_exported(tmp_path / FILES[format], trust_pt2=True)
    assert "\n" not in str(caught.value)


def test_xml_takes_its_own_bin_alone(exported, tmp_path):
    path = exported("openvino")
    (tmp_path / "net.xml").write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match="net.bin"):
        read_exported(tmp_path / "net.xml")
    content = bytearray(path.with_suffix(".bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "net.bin").write_bytes(content)
    with pytest.raises(ValueError, match="is not the one that was written with"):
        read_exported(tmp_path / "net.xml")


BAD = {
    "architecture": 3,
    "num_classes": [-1, True, 2.5, 4],
    "classes": ["polyp", ["a", "a", "b"], ["a", "b"], [1, 2, 3], []],
    "image_mode": None,
    "transform": [[], {}, None],
    "format": ["openvino", "tar", ["onnx"]],
    "precision": ["bfloat16", "float8", 1],
    "dynamic_batch": [1, "yes"],
    "weights": ["", "0" * 63, 3],
    "versions": "new",
    "transform.input_size": [[3, 32], [3, 32, 1 << 20], [0, 32, 32], [3, 32, True], "3x32", [1, 32, 32]],
    "transform.interpolation": ["random", None],
    "transform.mean": [[0.5], [0.5, 0.5, 1e9], ["a", "b", "c"]],
    "transform.std": [[0, 0.5, 0.5], [-1, 0.5, 0.5], []],
    "transform.crop_pct": [0, "all", 1e9],
    "transform.crop_mode": ["other", 1],
}


@pytest.mark.parametrize("field", BAD)
def test_metadata_of_the_wrong_kind_are_refused(field, exported):
    good = json.loads(next(p.value for p in onnx.load(exported("onnx")).metadata_props if p.key == METADATA))
    path = exported("onnx")
    assert Metadata.from_json(json.dumps(good), path).classes == CLASSES
    name, _, inner = field.partition(".")
    for value in BAD[field] if isinstance(BAD[field], list) else [BAD[field]]:
        changed = good | {name: good[name] | {inner: value} if inner else value}
        with pytest.raises(ValueError, match="the metadata in .*net.onnx"):
            Metadata.from_json(json.dumps(changed), path)
    del (good[name] if inner else good)[inner or name]
    with pytest.raises(ValueError, match=f"lacks {field}"):
        Metadata.from_json(json.dumps(good), path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_metadata_that_are_no_object_are_refused(text):
    with pytest.raises(ValueError, match="the metadata in net.onnx are "):
        Metadata.from_json(text, Path("net.onnx"))


def test_images_of_another_mode_than_the_network_takes_are_refused(exported, tmp_path):
    def change(model):
        entry = next(p for p in model.metadata_props if p.key == METADATA)
        entry.value = json.dumps(json.loads(entry.value) | dict(image_mode="L"))

    with pytest.raises(ValueError, match="takes images of mode L in 3 channels"):
        load_for_inference("test_convnext", rewrite(exported("onnx"), tmp_path / "net.onnx", change))


def test_file_without_metadata_is_refused(exported, tmp_path):
    path = rewrite(exported("onnx"), tmp_path / "net.onnx", lambda model: model.ClearField("metadata_props"))
    with pytest.raises(ValueError, match="has no metadata of hifuse_timm"):
        read_exported(path)


def test_outputs_of_another_shape_than_the_metadata_say_are_refused(exported, tmp_path):
    def change(model):
        entry = next(p for p in model.metadata_props if p.key == METADATA)
        entry.value = json.dumps(json.loads(entry.value) | dict(num_classes=2, classes=["a", "b"]))

    model = read_exported(rewrite(exported("onnx"), tmp_path / "net.onnx", change))
    with pytest.raises(ValueError, match=r"of shape \(1, 3\), expected torch.float32 of \(1, 2\)"):
        model(torch.zeros(1, 3, 32, 32))
