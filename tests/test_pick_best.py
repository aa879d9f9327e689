"""`evaluate --metric`: the best of several checkpoints, picked on val."""

import argparse
import json

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from PIL import Image

from hifuse_timm.__main__ import main


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Three images of a class and one of another."""
    root = tmp_path_factory.mktemp("data")
    for split in ("val", "test"):
        for name, images in (("common", 3), ("rare", 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                Image.fromarray(np.full((32, 32, 3), 60 * i, dtype=np.uint8)).save(root / split / name / f"{i}.png")
    (root / "dataset.json").write_text(json.dumps(dict(name="own", classes=["common", "rare"])))
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of one training, each of which gives all images the same probability of the rare class."""
    folder = tmp_path_factory.mktemp("run")
    args = argparse.Namespace(img_size=32, model_kwargs=NARROW)
    weights = timm.create_model("hifuse_tiny", num_classes=2, **NARROW).state_dict()
    weights["head.fc.weight"] = torch.zeros_like(weights["head.fc.weight"])
    for name, rare in (("wrong", 0.9), ("sure", 0.01), ("calibrated", 0.25)):
        bias = torch.tensor([1 - rare, rare]).log()
        torch.save(dict(state_dict=weights | {"head.fc.bias": bias}, args=args), folder / f"{name}.pth.tar")
    return folder


def evaluate(data_dir, checkpoints, *options, names=("wrong", "sure", "calibrated")) -> int:
    files = [str(checkpoints / f"{name}.pth.tar") for name in names]
    common = ["--data-dir", str(data_dir), "--workers", "0", "--device", "cpu", "--resamples", "10"]
    return main(["evaluate", "--model", "hifuse_tiny", "--checkpoint", *files, *common, *map(str, options)])


@pytest.mark.parametrize(
    "metric, name, best, values",
    [
        ("accuracy", "accuracy", "sure", [0.25, 0.75, 0.75]),  # the first of equal ones
        ("ece", "calibration error", "calibrated", [0.65, 0.24, 0]),
        ("brier", "Brier score", "calibrated", [0.61, 0.2451, 0.1875]),
    ],
)
def test_best_is_named_and_what_is_written_is_of_it(
    metric, name, best, values, data_dir, checkpoints, tmp_path, capsys
):
    outputs = ["--json", tmp_path / "best.json", "--predictions", tmp_path / "best.csv"]
    assert evaluate(data_dir, checkpoints, "--metric", metric, *outputs) == 0
    file = str(checkpoints / f"{best}.pth.tar")
    assert f"best by {name} on val: {file}\n" in capsys.readouterr().out
    result = json.loads((tmp_path / "best.json").read_text())
    selection = result.pop("selection")
    assert [found["value"] for found in selection["checkpoints"]] == pytest.approx(values, abs=1e-6)

    outputs = ["--json", tmp_path / "alone.json", "--predictions", tmp_path / "alone.csv"]
    assert evaluate(data_dir, checkpoints, "--split", "val", *outputs, names=[best]) == 0
    assert json.loads((tmp_path / "alone.json").read_text()) == result
    assert (tmp_path / "alone.csv").read_text() == (tmp_path / "best.csv").read_text()


@pytest.mark.parametrize(
    "options, names, words",
    [
        ([], ("wrong", "sure"), "2 checkpoints are given: --metric says by what to pick the best of them"),
        (["--metric", "f1"], ("sure",), "metric f1 picks the best of several checkpoints: 1 given"),
        (
            ["--metric", "f1", "--split", "test"],
            ("wrong", "sure"),
            "split test would measure the checkpoint that is best",
        ),
        (["--metric", "f1"], ("sure", "gone"), "gone.pth.tar does not exist or is not a file"),
    ],
)
def test_what_cannot_be_picked_is_one_error_before_any_work(
    options, names, words, data_dir, checkpoints, monkeypatch, capsys
):
    monkeypatch.setattr("hifuse_timm.evaluate.selection.evaluate", lambda *args, **kwargs: pytest.fail("evaluated"))
    monkeypatch.setattr("hifuse_timm.evaluate.evaluate", lambda *args, **kwargs: pytest.fail("evaluated"))
    assert evaluate(data_dir, checkpoints, *options, names=names) == 1
    assert words in capsys.readouterr().err
