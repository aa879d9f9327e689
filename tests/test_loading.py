"""One way to a trained network: evaluate, explain and what publish writes build the same one, from data alone."""

import argparse
import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform

import hifuse_timm.evaluate.evaluation
import hifuse_timm.explain.figure
from hifuse_timm import hifuse
from hifuse_timm.__main__ import main
from hifuse_timm.datasets import DATASETS
from hifuse_timm.loading import find_device, load_trained

LABELS = list(DATASETS["covid19ct"].labels)
HIFUSE = dict(dims=(16, 32), depths=(1, 1), num_heads=(1, 2))
CONVNEXT = dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))


@pytest.fixture
def data(tmp_path):
    """A dataset of two classes with one image each, in colour, and its description."""
    root = tmp_path / "data"
    for k, name in enumerate(LABELS):
        (root / "test" / name).mkdir(parents=True)
        pixels = np.random.default_rng(k).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(pixels).save(root / "test" / name / f"{k}.png")
    (root / "dataset.json").write_text(json.dumps(dict(name="covid19ct", title="COVID19-CT", classes=LABELS)))
    return root


@pytest.fixture
def save(tmp_path):
    """Saves a network as train.py does, with its arguments, none of its weights as they are at the start."""

    def save(name: str, num_classes: int = 2, **args):
        unset = dict.fromkeys(("num_classes", "in_chans", "input_size", "img_size", "gp", "mean", "std", "crop_pct"))
        args = unset | dict(model=name, interpolation="", model_kwargs={}, class_map="") | args
        in_chans = args["in_chans"] or (args["input_size"] or [3])[0]
        torch.manual_seed(0)
        model = timm.create_model(
            name, num_classes=num_classes, in_chans=in_chans, global_pool=args["gp"], **args["model_kwargs"]
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path / f"{name}.pth.tar"
        torch.save(dict(state_dict=model.state_dict(), args=argparse.Namespace(**args)), path)
        return path

    return save


@pytest.fixture
def seen(monkeypatch):
    """The networks that evaluate and explain load, each with the inputs that it sees from then on."""
    loaded = []

    def load(*args, **kwargs):
        trained, inputs = load_trained(*args, **kwargs), []
        trained.model.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
        loaded.append((trained, inputs))
        return trained

    for module in (hifuse_timm.evaluate.evaluation, hifuse_timm.explain.figure):
        monkeypatch.setattr(module, "load_trained", load)
    return loaded


def evaluate(data, *options) -> int:
    common = ["--data-dir", data, "--workers", "0", "--batch-size", "1", "--resamples", "10", "--device", "cpu"]
    return main(["evaluate", *map(str, [*common, *options])])


def explain(data, *options) -> int:
    images = sorted((data / "test").rglob("*.png"))
    common = [*images, "--data-dir", data, "--device", "cpu", "--out", data.parent / "out.png"]
    return main(["explain", *map(str, [*common, *options])])


@torch.inference_mode()
def assert_same(loaded):
    """All of these networks have the same classes, take the same inputs and give the same logits, to the bit."""
    (first, first_inputs), *others = loaded
    first_inputs = torch.cat([x for x in first_inputs if len(x) == 1][-2:])
    assert others and first.class_names == tuple(LABELS)
    for trained, inputs in others:
        inputs = torch.cat(inputs[-2:])
        assert (trained.image_mode, trained.class_names) == (first.image_mode, first.class_names)
        assert torch.equal(inputs, first_inputs)
        assert torch.equal(trained.model(inputs), first.model(first_inputs))
    assert not torch.equal(first_inputs[0], first_inputs[1])


NETWORKS = {
    "grey, timm's default mean": ("convnext_atto", dict(in_chans=1, img_size=64, model_kwargs=CONVNEXT)),
    "grey, by input_size": ("test_resnet", dict(input_size=[1, 48, 64])),
    "model kwargs": ("hifuse_tiny", dict(model_kwargs=HIFUSE, gp="max", img_size=64, mean=[0.3], std=[0.2, 0.3, 0.4])),
    "colour": ("test_convnext", dict(interpolation="lanczos", crop_pct=0.7)),
    "fixed size": ("test_vit", dict()),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_evaluate_and_explain_give_one_network_the_same_inputs_and_logits(kind, data, save, seen):
    name, args = NETWORKS[kind]
    options = ["--model", name, "--checkpoint", save(name, **args)]
    assert evaluate(data, *options) == explain(data, *options) == 0
    assert len(seen) == 2
    assert_same(seen)


def test_grey_images_are_normalised_as_in_training_with_the_mean_of_the_channels(data, save, seen):
    """The loader is the one that train.py validates with."""
    name, args = NETWORKS["grey, timm's default mean"]
    assert explain(data, "--model", name, "--checkpoint", save(name, **args)) == 0
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.mean == (0.485, 0.456, 0.406)
    loader = create_loader(
        ImageDataset(data / "test", input_img_mode="L"),
        input_size=(1, 64, 64),
        batch_size=2,
        mean=cfg.mean,
        std=cfg.std,
        interpolation=cfg.interpolation,
        crop_pct=cfg.crop_pct,
        num_workers=0,
        device=torch.device("cpu"),
    )
    (trained, inputs), (expected, _) = seen[0], next(iter(loader))
    assert trained.data_config["mean"] == pytest.approx((0.449,)) and trained.data_config["crop_mode"] == "center"
    torch.testing.assert_close(torch.cat(inputs[-2:]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("args", [dict(in_chans=1, mean=[0.4], gp="max"), dict(crop_pct=0.8, interpolation="bicubic")])
def test_what_is_published_of_a_checkpoint_is_the_same_network(args, data, save, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(hifuse, "HiFuse", partial(hifuse.HiFuse, **NARROW))
    checkpoint, out = save("hifuse_tiny", img_size=64, **args), tmp_path / "out"
    publish = ["publish", "--model", "hifuse_tiny", "--checkpoint", str(checkpoint), "--dataset", "covid19ct"]
    assert main([*publish, "--dry-run", str(out)]) == 0
    for command in (evaluate, explain):
        assert command(data, "--model", "hifuse_tiny", "--checkpoint", checkpoint) == 0
    assert evaluate(data, "--model", f"local-dir:{out}", "--pretrained") == 0
    assert explain(data, "--model", f"local-dir:{out}") == 0
    assert len(seen) == 4
    assert_same(seen)
    # as the card says to load it
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    transform = create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.open(next((data / "test").rglob("0.png"))).convert(seen[0][0].image_mode)
    assert torch.equal(transform(image), seen[0][1][0][0])


def test_checkpoint_of_a_local_directory_is_its_network_with_the_weights_of_the_file(data, save, seen, tmp_path):
    """As of a fine-tuned model: another number of classes, the preprocessing of the directory."""
    torch.manual_seed(1)
    model = timm.create_model("hifuse_tiny", num_classes=5, **HIFUSE)
    cfg = dict(mean=(0.1, 0.2, 0.3), input_size=(3, 64, 64))
    labels = dict(label_names=list("abcde"))
    timm.models.save_for_hf(model, tmp_path / "saved", labels, HIFUSE, safe_serialization=True, data_config=cfg)
    options = ["--model", f"local-dir:{tmp_path / 'saved'}", "--checkpoint", save("hifuse_tiny", model_kwargs=HIFUSE)]
    assert evaluate(data, *options) == explain(data, *options) == 0
    assert seen[0][0].data_config["mean"] == (0.1, 0.2, 0.3)
    assert_same(seen)


def test_one_file_gives_one_error(data, save, capsys):
    for options, words in (
        (["--model", "test_convnet"], "model 'test_convnet' is not known to timm: near it are test_convnext"),
        (["--model", "hifuse_tiny.mine"], "hifuse_tiny.mine is not registered: registered tags are "),
        (["--model", "test_convnext"], "does not fit test_convnext"),
        (["--model", "local-dir:nowhere"], "Config file not found: nowhere/config.json"),
        (["--model", "test_resnet", "--device", "gpu"], "device 'gpu' cannot be used"),
    ):
        errors = []
        for command in (evaluate, explain):
            assert command(data, "--checkpoint", save("test_resnet"), *options) == 1
            errors.append(capsys.readouterr().err)
        assert errors[0] == errors[1] and words in errors[0]


def test_device_is_the_machines_accelerator_or_the_one_named(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert find_device() == torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert find_device() == torch.device("cpu")
