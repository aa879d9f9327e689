"""The network in the package is the one that its card describes, and works without a network."""

import json
import re
import socket

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.evaluate import evaluate
from hifuse_timm.files import sha256
from hifuse_timm.packaged import packaged_examples, packaged_weights
from hifuse_timm.predictions import read_predictions

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


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_card_has_the_metrics_of_all_test_images(card, data_dir):
    result = evaluate(MODEL, data_dir, device="cpu", workers=0, resamples=1).result
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


def test_predict_and_explain_take_it(tmp_path):
    images = list(map(str, packaged_examples()))
    network = ["--model", MODEL, "--device", "cpu"]
    assert main(["predict", *images, *network, "--pretrained", "--workers", "0", "--csv", str(tmp_path / "p.csv")]) == 0
    assert read_predictions(tmp_path / "p.csv").classes == CLASSES
    assert main(["explain", *images[:1], *network, "--out", str(tmp_path / "heat.png")]) == 0
