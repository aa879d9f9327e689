"""`publish --data-dir`: a network of any shape, trained on a dataset of one's own, to the Hub and back."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file, save_file

from hifuse_timm.__main__ import main
from hifuse_timm.datasets import read_dataset

REPO_ID = "clinic/hifuse_small.own"
CLASSES = {"bad": "malignant *lesion*", "good": "benign lesion"}
# Widths, depths and channels that no registered model has.
SHAPE = dict(dims=(8, 16, 32), depths=(1, 2, 1), num_heads=(1, 2, 4), in_chans=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Grey images of two classes, as prepare writes them from a folder."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / "scans" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "scans" / name / f"{name}{i}.png")
    words = ["--title", "Our [clinic]", "--url", "https://clinic.example/scans", "--citation", "Doe et al. (2026)"]
    words += ["--license", "Clinic terms <v2>", "--classes", *(f"{name}={text}" for name, text in CLASSES.items())]
    command = ["prepare", "images", "--source", str(root / "scans"), "--out", str(root / "own"), *words]
    assert main(command) == 0
    return root / "own"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What train.py saves of a network of its own shape."""
    torch.manual_seed(0)
    model = timm.create_model("hifuse_small", num_classes=2, **SHAPE)
    args = argparse.Namespace(model="hifuse_small", num_classes=2, img_size=32, mean=[0.4], std=[0.3], model_kwargs={})
    args.model_kwargs |= {key: value for key, value in SHAPE.items() if key != "in_chans"}
    path = tmp_path_factory.mktemp("training") / "model_best.pth.tar"
    torch.save(dict(epoch=1, arch="hifuse_small", state_dict=model.state_dict(), args=args), path)
    return path


def publish(checkpoint, data_dir, *options, repo_id=REPO_ID) -> int:
    weights = ["--model", "hifuse_small", "--checkpoint", str(checkpoint), "--data-dir", str(data_dir)]
    return main(["publish", *weights, *(["--repo-id", repo_id] if repo_id else []), *map(str, options)])


def describe(folder: Path, **changes) -> Path:
    """A folder with a dataset.json of these entries."""
    folder.mkdir()
    content = dict(name="own", classes=list(CLASSES)) | changes
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


LOAD = """
import json, sys, timm, hifuse_timm
model = timm.create_model("hf-hub:clinic/hifuse_small.own", pretrained=True)
sums = {key: value.sum().item() for key, value in model.state_dict().items()}
print(json.dumps([model.num_classes, model.in_chans, model.pretrained_cfg["label_names"], sums]))
"""


def test_published_network_loads_in_a_fresh_process_and_keeps_its_classes(
    hub, data_dir, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert publish(checkpoint, data_dir) == 0

    env = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
    env = {key: value for key, value in (os.environ | env).items() if key != "HF_TOKEN"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=env, check=True, timeout=120, capture_output=True).stdout
    weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    sums = {key: value.sum().item() for key, value in weights.items()}
    assert json.loads(loaded) == [2, 1, list(CLASSES), sums]

    def evaluate(name, *options):
        common = ["--data-dir", data_dir, "--workers", "0", "--device", "cpu", "--resamples", "10"]
        assert main(["evaluate", *map(str, [*options, *common, "--predictions", tmp_path / name])]) == 0
        return (tmp_path / name).read_text()

    trained = evaluate("trained.csv", "--model", "hifuse_small", "--checkpoint", checkpoint)
    assert evaluate("published.csv", "--model", f"hf-hub:{REPO_ID}", "--pretrained") == trained
    assert trained.startswith("file,class,predicted,p_bad,p_good\n")

    image = next((data_dir / "test" / "bad").iterdir())
    command = ["explain", str(image), "--model", f"hf-hub:{REPO_ID}", "--class", "good", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "map.png")]) == 0, capsys.readouterr().err


@torch.no_grad()
def test_transformers_takes_shape_and_classes(data_dir, checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert publish(checkpoint, data_dir, "--dry-run", tmp_path / "out") == 0
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    ours = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(model(x).logits, ours(x), rtol=1e-5, atol=1e-5)
    assert model.config.id2label == dict(enumerate(CLASSES))


def test_card_says_what_dataset_json_says(data_dir, checkpoint, tmp_path):
    assert publish(checkpoint, data_dir, "--dry-run", tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "own-terms")
    assert card.data.license_link == "https://clinic.example/scans"
    for words in (
        "# hifuse_small.own\n",
        r"Dataset: [Our \[clinic\]](https://clinic.example/scans).",
        r"Licence of the data: Clinic terms \<v2\>. It carries over to these weights. Please cite Doe et al. (2026).",
        r"| 0 | bad | malignant \*lesion\* |",
        'timm.create_model("hf-hub:clinic/hifuse_small.own", pretrained=True)',
    ):
        assert words in card.text


def test_card_of_a_dataset_of_few_words_has_no_gaps(checkpoint, tmp_path):
    bare = describe(tmp_path / "bare", title="# own", source="javascript:alert(1)")
    assert publish(checkpoint, bare, "--dry-run", tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown"
    assert (
        "## Data and licence\n\nDataset: # own, from javascript:alert(1).\n\n"
        "Licence of the data: not stated. It carries over to these weights.\n\n| index" in card.text
    )


@pytest.mark.parametrize(
    "given, license, note",
    [
        (dict(license="CC-BY-4.0"), "cc-by-4.0", "cc-by-4.0"),
        (dict(license="cc-by-nc-4.0", license_note="CC BY-NC 4.0"), "cc-by-nc-4.0", "CC BY-NC 4.0"),
        (dict(license="as agreed"), "other", "as agreed"),
        (dict(license="other", license_note="its own terms"), "other", "its own terms"),
        (dict(license=None), "unknown", "not stated"),
    ],
)
def test_licence_is_one_of_the_hub_or_other_with_its_text(given, license, note, tmp_path):
    _, data = read_dataset(describe(tmp_path / "own", **given))
    assert (data.license, data.license_note) == (license, note)


def test_weights_without_arguments_take_them_from_the_command(checkpoint, data_dir, tmp_path, capsys):
    save_file(torch.load(checkpoint, weights_only=False)["state_dict"], tmp_path / "bare.safetensors")
    assert publish(tmp_path / "bare.safetensors", data_dir, "--dry-run", tmp_path / "out") == 1
    assert "the checkpoint is of a HiFuse of dims (8, 16, 32)" in capsys.readouterr().err
    shape = [f"{key}={value}".replace(" ", "") for key, value in SHAPE.items()]
    options = ["--model-kwargs", *shape, "--dry-run", tmp_path / "out"]
    assert publish(tmp_path / "bare.safetensors", data_dir, *options) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.in_chans, model.num_features) == (1, 32)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(classes=["a", "b", "c"]), "has 2 classes, {own}/dataset.json has 3: a, b, c"),
        (dict(name="../x"), "{own}/dataset.json: its name '../x' is not valid"),
        (dict(name=None), "{own}/dataset.json: its name '' is not valid"),
        (dict(citation=["Doe"]), "its citation is ['Doe'], expected a string"),
        (dict(class_descriptions=["x"]), "its class_descriptions are ['x'], expected a string for each class"),
    ],
)
def test_dataset_that_does_not_fit_is_one_error(changes, words, checkpoint, tmp_path, capsys):
    own = describe(tmp_path / "own", **changes)
    assert publish(checkpoint, own, "--dry-run", tmp_path / "out") == 1
    assert words.format(own=own) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_in_another_order_than_the_training_are_refused(checkpoint, data_dir, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("good\nbad\n")
    options = ["--class-map", tmp_path / "classes.txt", "--dry-run", tmp_path / "out"]
    assert publish(checkpoint, data_dir, *options) == 1
    assert (
        "in the order of its class map, good, bad; those of own are published as bad, good" in capsys.readouterr().err
    )


def test_repository_of_a_dataset_of_ones_own_must_be_named(checkpoint, data_dir, tmp_path, capsys):
    assert publish(checkpoint, data_dir, "--dry-run", tmp_path / "out", repo_id=None) == 1
    assert "repo_id (--repo-id) is missing: own is none of the paper's datasets" in capsys.readouterr().err
    assert publish(checkpoint, tmp_path, "--dry-run", tmp_path / "out") == 1
    assert f"data_dir {tmp_path} has no dataset.json" in capsys.readouterr().err


# Rounded to float16


def evaluate(data_dir, run, *weights) -> Path:
    """What evaluate writes of some weights."""
    common = ["--data-dir", data_dir, "--workers", "0", "--device", "cpu", "--resamples", "10", "--json", run]
    assert main(["evaluate", *map(str, [*weights, *common])]) == 0
    return run


@torch.no_grad()
def test_half_publishes_weights_rounded_to_float16(data_dir, checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert publish(checkpoint, data_dir, "--half", "--dry-run", out) == 0
    trained = torch.load(checkpoint, weights_only=False)["state_dict"]
    for key, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, trained[key].half() if trained[key].is_floating_point() else trained[key])
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    theirs = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(theirs(x).logits, model(x), rtol=1e-5, atol=1e-5)
    assert "holds the trained weights, rounded to float16" in (out / "README.md").read_text()


def test_metrics_are_of_the_weights_that_are_published(data_dir, checkpoint, tmp_path, capsys):
    out, trained = tmp_path / "out", ["--model", "hifuse_small", "--checkpoint", checkpoint]
    assert publish(checkpoint, data_dir, "--half", "--dry-run", out) == 0
    of_trained = evaluate(data_dir, tmp_path / "trained.json", *trained)
    of_rounded = evaluate(data_dir, tmp_path / "rounded.json", "--model", f"local-dir:{out}", "--pretrained")
    of_unknown = tmp_path / "unknown.json"
    of_unknown.write_text('{"accuracy": 0.8}')
    for metrics, half, is_published in (
        (of_trained, False, True),
        (of_rounded, False, False),
        (of_unknown, False, True),
        (of_trained, True, False),
        (of_unknown, True, False),
        (of_rounded, True, True),
    ):
        options = ["--metrics", metrics, "--dry-run", out, *(["--half"] if half else [])]
        assert publish(checkpoint, data_dir, *options) == (0 if is_published else 1)
        refusal = f"error: metrics {metrics} are not of the weights to publish: expected what evaluate wrote of "
        assert capsys.readouterr().err.startswith("" if is_published else refusal)
    assert f"| accuracy | {json.loads(of_rounded.read_text())['accuracy']:.4f} |" in (out / "README.md").read_text()


def test_weights_beyond_float16_are_not_published_in_it(data_dir, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["head.fc.bias"] = torch.full((2,), 70_000.0)
    torch.save(content, tmp_path / "large.pth.tar")
    assert publish(tmp_path / "large.pth.tar", data_dir, "--half", "--dry-run", tmp_path / "out") == 1
    assert "has weights beyond the largest of float16, 65,504: head.fc.bias" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
