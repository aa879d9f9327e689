"""This checkout against another: two processes a network, each with the hifuse_timm of its own."""

import json
import shutil
import subprocess
import sys

import pytest
from conformance import ROOT
from conftest import NARROW

from benchmarks import versus
from benchmarks.__main__ import main
from benchmarks.measure.config import RunnerConfig

ARGUMENTS = ",".join(f"{name}={value}".replace(" ", "") for name, value in (NARROW | dict(depths=(1, 1, 1, 1))).items())


@pytest.fixture
def other(tmp_path):
    """Another checkout with the same package."""
    shutil.copytree(ROOT / "hifuse_timm", tmp_path / "other/hifuse_timm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "other"


def change(checkout, text):
    with (checkout / "hifuse_timm/__init__.py").open("a") as package:
        package.write(text)


def test_the_same_package_computes_the_same_in_turns(other, tmp_path, capsys):
    path = tmp_path / "versus.json"
    model = f"hifuse_tiny[fuse,{ARGUMENTS}]"
    options = ["--models", model, "--batch-size", "2", "--image-size", "64", "--rounds", "3", "--json", str(path)]
    assert main(["versus", str(other), *options]) == 0
    data = json.loads(path.read_text())
    (row,) = data["rows"]
    assert data["kind"] == "versus" and row["model"] == model and row["error"] is None and row["difference"] == 0
    assert len(row["here"]) == len(row["there"]) == 3 and min(row["here"] + row["there"]) > 0
    printed = capsys.readouterr().out
    assert f"Images/s in {other}" in printed and "over 3 rounds" in printed


def test_what_another_package_computes_otherwise_is_told(other, tmp_path):
    change(other, "_forward = HiFuse.forward\nHiFuse.forward = lambda self, x: _forward(self, x) + 0.5\n")
    path = tmp_path / "versus.json"
    options = ["--models", f"hifuse_tiny[{ARGUMENTS}]", "--mode", "training", "--batch-size", "2", "--image-size", "64"]
    assert main(["versus", str(other), *options, "--rounds", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["difference"] == pytest.approx(0.5, abs=1e-4) and len(row["there"]) == 1


def test_a_package_that_fails_is_named_with_its_error(other):
    change(other, "raise RuntimeError('no such thing')\n")
    config = versus.worker_config(RunnerConfig("hifuse_tiny", 1, 224, "cpu", "float32", "inference"))
    with pytest.raises(RuntimeError, match=f"{other}: RuntimeError: no such thing"):
        with versus.start_worker(other, config):
            pass


def test_workers_import_no_hifuse_timm_before_that_of_their_checkout():
    code = "import benchmarks.measure.worker, sys; print([name for name in sys.modules if name.startswith('hifuse')])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nowhere", "DIR: nowhere has no hifuse_timm"),
        (". --models hifuse_tiny[fuse] --mode training", "hifuse_tiny[fuse] is folded for inference"),
        (". --models test_convnext[conv_mlp]", "test_convnext[conv_mlp] is not for versus"),
        (". --models hifuse_tiny_reconstruction", "hifuse_tiny_reconstruction is not for versus"),
        (". --batch-size 0", "batch-size: 0 is too few"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_work(options, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in main(["versus", *options.split()])
