"""`benchmarks runtimes`: the files of export, measured in turns; ratios within a runtime and precision."""

import json

import pytest
import torch

from benchmarks import runtimes
from benchmarks.__main__ import main
from benchmarks.measure import timing
from benchmarks.measure.timing import Samples
from benchmarks.runtimes import Row, Settings

SETTINGS = dict(
    models=["test_vit", "test_convnext", "test_convnext[conv_mlp]"],
    baseline="test_convnext",
    runtimes=["pytorch", "openvino"],
    precisions=["bfloat16", "int8"],
    batch_sizes=[2],
    image_size=64,
    rounds=2,
    calibration="8 images of noise",
)


@pytest.fixture
def brief(monkeypatch):
    """Turns of a single call, and the number of threads as before."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(timing, "WARMUP_SECONDS", 0.0)
    monkeypatch.setattr(timing, "TURN_SECONDS", 0.0)
    yield
    torch.set_num_threads(threads)


def test_networks_are_exported_as_users_do_and_measured(brief, tmp_path, capsys, monkeypatch):
    command = ["runtimes", "--models", "test_convnext", "--image-size", "64", "--rounds", "2", "--batch-size", "2"]
    command += ["--runtimes", "pytorch", "openvino", "--precision", "bfloat16", "int8", "--threads", "1"]
    command += ["--keep", str(tmp_path / "files"), "--json", str(tmp_path / "a.json")]
    assert main(command) == 0
    data = json.loads((tmp_path / "a.json").read_text())
    rows = [Row.from_json(row) for row in data["rows"]]
    found = [(row.runtime, row.precision) for row in rows]
    assert found == [("pytorch", "bfloat16"), ("openvino", "bfloat16"), ("openvino", "int8")]
    assert all(len(row.samples.rates) == 2 and min(row.samples.rates) > 0 and row.error is None for row in rows)
    assert all(0 < row.difference < 0.25 for row in rows)  # they compute in less, and the same
    assert data["conditions"]["threads"] == 1 and {"openvino", "nncf", "torch"} <= data["conditions"].keys()
    table = capsys.readouterr().out
    assert "calibrated on 8 images of noise" in table and table.count("1.000 (1.000 to 1.000)") == 3
    assert len(list((tmp_path / "files").iterdir())) == 4  # .xml and .bin

    monkeypatch.setattr(runtimes, "WRITERS", None)  # the files are taken again
    assert main([*command[:-2], "--export-only"]) == 0
    assert not main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path / "page")])
    assert "| test_convnext | openvino  | int8" in (tmp_path / "page" / "report.md").read_text()


def test_ratios_are_to_the_fastest_form_in_the_same_runtime_and_precision():
    settings, rows = Settings(**SETTINGS), runtimes.make_rows(Settings(**SETTINGS))
    rates = {
        ("pytorch", "bfloat16"): (12, 3, 6),
        ("openvino", "bfloat16"): (20, 10, 8),
        ("openvino", "int8"): (50, 20, 40),
    }
    for row in rows:
        rate = rates[row.runtime, row.precision][settings.models.index(row.model)]
        row.samples = Samples([rate, 2 * rate])
    text = runtimes.format_rows(rows, settings, {}, markdown=True)
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| test")
    ]
    ratios = {(model, *where): (base, int8) for model, *where, _, base, int8, _ in cells}
    assert ratios["test_vit", "pytorch", "bfloat16"] == ("2.000 (2.000 to 2.000)", "")
    assert ratios["test_vit", "openvino", "bfloat16"] == ("2.000 (2.000 to 2.000)", "")
    assert ratios["test_vit", "openvino", "int8"] == ("1.250 (1.250 to 1.250)", "2.500 (2.500 to 2.500)")
    assert ratios["test_convnext", "openvino", "int8"][0].startswith("0.500")


def test_a_network_that_cannot_be_exported_is_said(brief, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise ValueError("no such operator\nat all")

    monkeypatch.setitem(runtimes.WRITERS, "onnx", fail)
    command = ["runtimes", "--models", "test_convnext", "--image-size", "64", "--rounds", "1", "--batch-size", "1"]
    assert main([*command, "--runtimes", "pytorch", "onnxruntime", "--precision", "float32"]) == 1
    out = capsys.readouterr().out
    assert "onnxruntime, float32, batch 1 failed in export: ValueError: no such operator\n" in out
    assert "1.000 (1.000 to 1.000)" in out  # PyTorch's


@pytest.mark.parametrize(
    "changed, fault",
    [
        (["--baseline", "resnet18"], "baseline: 'resnet18' is not measured"),
        (["--models", "test_vit", "test_vit"], "models: test_vit test_vit has one twice"),
        (["--models", "test_vit[channels_last]"], "is not for runtimes"),
        (["--runtimes", "pytorch", "--precision", "int8"], "precision: pytorch have none of int8"),
        (["--rounds", "0"], "rounds: 0 is too few"),
        (["--threads", "0"], "threads: 0 is too few"),
        (["--export-only"], "export-only: the files would not stay"),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(changed, fault):
    assert fault in main(["runtimes", "--models", "test_vit", *changed])
