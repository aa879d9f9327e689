"""From what a provider publishes to weights on the Hub that give the trained ones' figures."""

import json
from functools import partial

import pytest
import timm
import torch
import train_like_timm
from conftest import NARROW
from huggingface_hub import ModelCard, constants
from miniatures import MINIATURES
from pytest import mark

from hifuse_timm import DATASETS, hifuse
from hifuse_timm.__main__ import main
from hifuse_timm.checkpoint import read_checkpoint
from hifuse_timm.hub import NAMESPACE
from hifuse_timm.recipes import recipe_path
from hifuse_timm.runs import METRICS

# What differs from the recipe, so that a narrow network learns a miniature in seconds.
CHANGES = dict(img_size=64, batch_size=8, epochs=6, lr=2e-3)


@pytest.fixture(autouse=True)
def narrow_variants(monkeypatch):
    """Makes the registered variants narrow, here and in what publish and pretrained=True build."""
    monkeypatch.setattr(hifuse, "HiFuse", partial(hifuse.HiFuse, **NARROW))


def train_with_components(tag, data_dir, output):
    return train_like_timm.train("hifuse_tiny", tag, data_dir, output, **CHANGES)


def train_with_train_py(tag, data_dir, output):
    changes = [f"--{name.replace('_', '-')}={value}" for name, value in CHANGES.items()]
    widths = [f"{name}={value}".replace(" ", "") for name, value in NARROW.items()]
    result = train_like_timm.run_train_py(
        *("--config", str(recipe_path(tag)), "--model", "hifuse_tiny", "--data-dir", str(data_dir), "--workers", "0"),
        *("--output", str(output.parent), "--experiment", output.name, *changes, "--model-kwargs", *widths),
    )
    assert result.returncode == 0, result.stderr
    return output / "model_best.pth.tar"


@mark.parametrize(
    "train",
    [
        train_with_components,
        pytest.param(
            train_with_train_py,
            marks=mark.skipif(
                train_like_timm.TRAIN_PY is None,
                reason="HIFUSE_TIMM_TRAIN_PY does not say where timm's train.py is",
            ),
        ),
    ],
)
@mark.parametrize("tag", DATASETS)
def test_published_weights_give_the_figures_of_the_training(tag, train, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    source = MINIATURES[tag](tmp_path / "downloads")
    prepared = tmp_path / "data"
    assert main(["prepare", tag, "--source", str(source), "--out", str(prepared), "--allow-incomplete"]) == 0
    data_dir = prepared / "fold1" if tag == "kvasir" else prepared

    checkpoint = train(tag, data_dir, tmp_path / "run")
    trained = read_checkpoint(checkpoint).state_dict

    def evaluate(name, *weights):
        files = ["--json", str(tmp_path / f"{name}.json"), "--predictions", str(tmp_path / f"{name}.csv")]
        common = ["--data-dir", str(data_dir), "--split", "test", "--device", "cpu", "--workers", "0"]
        assert main(["evaluate", *weights, *common, *files, "--resamples", "100"]) == 0
        return json.loads((tmp_path / f"{name}.json").read_text()), (tmp_path / f"{name}.csv").read_bytes()

    before, predictions = evaluate("before", "--model", "hifuse_tiny", "--checkpoint", str(checkpoint))
    assert before["dataset"] == tag and before["conditions"]["input_size"] == [3, 64, 64]
    num_classes = DATASETS[tag].num_classes
    assert before["accuracy"] > 0.5 + 0.5 / num_classes  # closer to all right than to chance
    assert list(before["per_class"]) == list(DATASETS[tag].labels)

    metrics = ["--metrics", str(tmp_path / "before.json")]
    assert main(["publish", "--model", "hifuse_tiny", "--checkpoint", str(checkpoint), "--dataset", tag, *metrics]) == 0

    repo_id = f"{NAMESPACE}/hifuse_tiny.{tag}"
    card = ModelCard(hub.repos[repo_id]["files"]["README.md"].decode())
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert shown == {name: before[name] for name in METRICS}
    model = timm.create_model(f"hifuse_tiny.{tag}", pretrained=True)
    assert model.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())

    after, predictions_after = evaluate("after", "--model", f"hf-hub:{repo_id}", "--pretrained")
    for key in before.keys() - {"model", "origins", "conditions"}:
        assert after[key] == before[key], key
    assert after["conditions"] == before["conditions"] | dict(checkpoint=None)
    assert predictions_after == predictions
