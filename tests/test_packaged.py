"""The network in the package is the one that its card describes, and works without a network."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.evaluate import evaluate
from hifuse_timm.files import sha256
from hifuse_timm.inference import load_calibration
from hifuse_timm.operating_points import describe_temperature, measure_calibration, tabulate_calibration
from hifuse_timm.packaged import packaged_calibration, packaged_examples, packaged_weights
from hifuse_timm.predictions import read_predictions

pytestmark = pytest.mark.usefixtures("offline")

MODEL = f"local-dir:{packaged_weights()}"
CLASSES = ["normal", "pneumonia"]
# Test images of each class in data/pneumoniamnist-test.png, row by row: PneumoniaMNIST, CC BY 4.0, Kermany et al.
# (2018) and Yang et al. (2023), as the card of the weights has it.
COUNTS = dict(normal=234, pneumonia=390)


@pytest.fixture(scope="module")
def card():
    return ModelCard.load(packaged_weights() / "README.md")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, pytestconfig):
    """All test images of PneumoniaMNIST in folders, as prepare writes them."""
    folder = tmp_path_factory.mktemp("pneumoniamnist")
    sheet = np.asarray(Image.open(pytestconfig.rootpath / "tests/data/pneumoniamnist-test.png"))
    images = iter(sheet.reshape(26, 28, 24, 28).swapaxes(1, 2).reshape(-1, 28, 28))
    for name, count in COUNTS.items():
        (folder / "test" / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(next(images)).save(folder / "test" / name / f"{number:03}.png")
    assert next(images, None) is None
    (folder / "dataset.json").write_text(json.dumps(dict(name="pneumoniamnist", classes=CLASSES)))
    return folder


@pytest.fixture(scope="module")
def evaluation(data_dir):
    """What evaluate finds on all test images."""
    return evaluate(MODEL, data_dir, device="cpu", workers=0, resamples=1)


def test_card_has_the_metrics_of_all_test_images(card, evaluation):
    result = evaluation.result
    promised = {metric.metric_name: metric.metric_value for metric in card.data.eval_results}
    assert result["accuracy"] == promised["accuracy"]
    assert {name: result[name] for name in promised} == pytest.approx(promised, abs=1e-4)
    shown = dict(re.findall(r"^\| (\w+) \| (0\.\d{4}) \| 0", card.text, flags=re.MULTILINE))
    assert shown == {name: f"{value:.4f}" for name, value in promised.items()}


def test_card_has_the_checksum_and_the_size_of_the_weights(card):
    file = packaged_weights() / "model.safetensors"
    assert sha256(file) == "d0906f7708b18fa555c9eb59a8dd044ac4839bff678d35f780ca63fe8fbe4f27"
    assert sha256(file) in card.text
    assert file.stat().st_size < 2_000_000
    model = timm.create_model(MODEL, pretrained=True)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card.text
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_card_has_what_the_calibration_does_on_test(card, evaluation):
    calibration = load_calibration(packaged_calibration(), evaluation.trained)  # refused for other weights
    origin, counts = calibration.content["fitted_on"], calibration.content["counts"]
    assert (origin["dataset"], origin["split"], counts["images"]) == ("pneumoniamnist", "val", 524)
    assert not calibration.thresholds and calibration.undecided_below is None
    assert describe_temperature(calibration.content).replace("temperature ", "temperature of ") in card.text
    measured = measure_calibration(calibration, evaluation.probs, evaluation.targets, resamples=1)
    ((header, rows),) = tabulate_calibration(calibration.content | {"measured": measured})
    for row in (header, *rows):
        assert f"| {' | '.join(row)} |" in card.text
    assert sha256(packaged_calibration()) in card.text


def test_card_names_licence_and_sources(card):
    assert card.data.license == "cc-by-4.0"
    for words in ("Kermany et al.", "Yang et al.", "https://creativecommons.org/licenses/by/4.0/", "no medical device"):
        assert words in card.text


def test_examples_are_test_images_of_both_classes(data_dir):
    pixels = {name: {Image.open(p).tobytes() for p in (data_dir / "test" / name).iterdir()} for name in CLASSES}
    examples = packaged_examples()
    assert len(examples) == 8
    for path in examples:
        name, _ = path.stem.split("-")
        assert Image.open(path).tobytes() in pixels[name]


def test_example_prints_what_predict_says(tmp_path, capsys):
    assert main(["example"]) == 0
    header, *rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert header.split()[-2:] == CLASSES
    images = list(map(str, packaged_examples()))
    out = tmp_path / "p.csv"
    options = ["--pretrained", "--calibration", str(packaged_calibration()), "--workers", "0", "--csv", str(out)]
    assert main(["predict", *images, "--model", MODEL, *options]) == 0
    table = read_predictions(out)
    for row, file, probs in zip(rows, table.files, table.probs.tolist(), strict=True):
        name, number = Path(file).stem.split("-")
        wrong = ["wrong"] if CLASSES[probs.index(max(probs))] != name else []
        assert row.split() == [f"{name},", number, *(f"{prob:.2%}" for prob in probs), *wrong]


def test_example_needs_no_extra():
    extras = ("jinja2", "matplotlib", "pydicom", "pytorch_grad_cam", "scipy", "sklearn", "tabulate")
    hidden = f"sys.modules |= dict.fromkeys({[*extras, 'torchmetrics']})"
    script = f"import sys; {hidden}; from hifuse_timm.__main__ import main; sys.exit(main(['example']))"
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "pneumonia, test5" in result.stdout


def test_commands_that_example_prints_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["example"]) == 0
    commands = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines() if line.startswith("python -m")]
    assert [main(command) for command in commands] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "heat.png"}
