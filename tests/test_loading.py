"""One way to a trained network: evaluate, explain and what publish writes build the same one, from data alone."""

import argparse
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from parity import authors_state_dict
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageDataset, create_loader, create_transform

import hifuse_timm.evaluate.evaluation
import hifuse_timm.explain.figure
from hifuse_timm import hifuse
from hifuse_timm.__main__ import main
from hifuse_timm.datasets import DATASETS
from hifuse_timm.loading import find_device, load_for_inference, load_trained

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
    """Saves a network as train.py does, with its arguments, none of its weights as they are at the start.

    `save.model` is the network.
    """

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
        save.model = model.eval()
        return path

    return save


@pytest.fixture
def seen(monkeypatch):
    """The networks that evaluate and explain load, each with the inputs that it sees from then on."""
    loaded = []

    def load(load, *args, **kwargs):
        trained, inputs = load(*args, **kwargs), []
        trained.model.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
        loaded.append((trained, inputs))
        return trained

    monkeypatch.setattr(hifuse_timm.evaluate.evaluation, "load_for_inference", partial(load, load_for_inference))
    monkeypatch.setattr(hifuse_timm.explain.figure, "load_trained", partial(load, load_trained))
    return loaded


def evaluate(data, *options) -> int:
    common = ["--data-dir", data, "--workers", "0", "--batch-size", "1", "--resamples", "10", "--device", "cpu"]
    return main(["evaluate", *map(str, [*common, *options])])


def explain(data, *options) -> int:
    images = sorted((data / "test").rglob("*.png"))
    common = [*images, "--data-dir", data, "--device", "cpu", "--out", data.parent / "out.png"]
    return main(["explain", *map(str, [*common, *options])])


@torch.inference_mode()
def assert_same(loaded, model):
    """All of these networks have the same classes, take the same inputs and give the logits of `model`, to the bit."""
    (first, first_inputs), *others = loaded
    first_inputs = torch.cat([x for x in first_inputs if len(x) == 1][-2:])
    assert others and first.class_names == tuple(LABELS)
    for trained, inputs in others:
        inputs = torch.cat(inputs[-2:])
        assert (trained.image_mode, trained.class_names) == (first.image_mode, first.class_names)
        assert torch.equal(inputs, first_inputs)
        assert torch.equal(trained.model(inputs), first.model(first_inputs))
    assert not torch.equal(first_inputs[0], first_inputs[1])
    assert torch.equal(first.model(first_inputs), model(first_inputs))


NETWORKS = {
    "grey, timm's default mean": (
        "convnext_tiny.fb_in22k_ft_in1k_384",
        dict(in_chans=1, img_size=64, model_kwargs=CONVNEXT),
    ),
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
    assert_same(seen, save.model)


def test_grey_images_are_normalised_as_in_training_with_the_mean_of_the_channels(data, save, seen):
    """The loader is the one that train.py validates with."""
    name, args = NETWORKS["grey, timm's default mean"]
    assert explain(data, "--model", name, "--checkpoint", save(name, **args)) == 0
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.mean == (0.485, 0.456, 0.406) and cfg.crop_mode == "squash"
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
    assert_same(seen, save.model)
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
    assert_same(seen, save.model)


@pytest.mark.parametrize(
    "change",
    [
        dict(mean={}),
        dict(mean="x"),
        dict(std=[0, 0, 0]),
        dict(input_size=[3]),
        dict(interpolation="x"),
        dict(crop_pct="x"),
    ],
)
def test_settings_of_a_directory_that_make_no_transform_are_one_error(change, data, tmp_path, capsys):
    model = timm.create_model("hifuse_tiny", num_classes=2, **HIFUSE)
    timm.models.save_for_hf(model, tmp_path / "saved", model_args=HIFUSE, safe_serialization=True)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    for command, weights in ((evaluate, ["--pretrained"]), (explain, [])):
        assert command(data, "--model", f"local-dir:{tmp_path / 'saved'}", *weights) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


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


def test_size_of_pretrained_weights_is_that_of_their_test_and_of_trained_ones_that_of_the_training(save, monkeypatch):
    cfg = timm.get_pretrained_cfg("test_mambaout")
    assert cfg.input_size[1:] == (160, 160) and cfg.test_input_size[1:] == (192, 192)
    checkpoint = save("test_mambaout")
    assert load_trained("test_mambaout", checkpoint).data_config["input_size"] == (3, 160, 160)
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda pretrained, **kwargs: create_model(**kwargs))
    assert load_trained("test_mambaout").data_config["input_size"] == (3, 192, 192)


def test_size_that_is_given_stands_over_that_of_the_training(save):
    checkpoint = save("test_resnet", input_size=[1, 48, 64])
    assert load_trained("test_resnet", checkpoint, img_size=80).data_config["input_size"] == (1, 80, 80)


def test_images_are_fitted_as_in_the_training_or_as_asked_for(save):
    checkpoint = save("test_resnet")
    assert load_trained("test_resnet", checkpoint).data_config["crop_mode"] == "center"
    trained = load_trained("test_resnet", checkpoint, crop_mode="border")
    assert trained.data_config["crop_mode"] == "border" and "but for crop_mode" in trained.origins["images"]
    with pytest.raises(ValueError, match="crop_mode 'middle' is not known: expected one of center, squash, border"):
        load_trained("test_resnet", checkpoint, crop_mode="middle")


def test_checkpoint_of_the_authors_code_is_loaded(tmp_path):
    authors = authors_state_dict("tiny")
    torch.save({"net": authors}, tmp_path / "best.pth")
    trained = load_trained("hifuse_tiny", tmp_path / "best.pth", device="cpu")
    assert trained.model.num_classes == 7 and not trained.model.training
    assert torch.equal(trained.model.local_stem[0].weight, authors["downsample_layers.0.0.weight"])


def test_device_is_the_machines_accelerator_or_the_one_named(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert find_device() == torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert find_device() == torch.device("cpu")


# What a checkpoint may not say


@pytest.fixture
def stranger():
    """A server on loopback that hands out a file, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"raise SystemExit")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["hifuse_tiny", "test_convnext"])
@pytest.mark.parametrize(
    "attack",
    [
        dict(pretrained=True, pretrained_cfg=dict(url="{url}/tabulate.py", hf_hub_id=""), cache_dir="."),
        dict(pretrained_cfg_overlay=dict(url="{url}/tabulate.py", source="", hf_hub_id="", file="")),
        dict(pretrained_cfg="isic2018"),
        dict(checkpoint_path="{url}/x.pth"),
        dict(cache_dir="."),
        dict(scriptable=True),
        dict(features_only=True),
        dict(num_classes=2),
        dict(device="meta"),
        dict(no_such_argument=1),
    ],
    ids=lambda attack: "+".join(attack),
)
def test_checkpoint_reaches_nothing_but_what_a_network_is(
    name, attack, data, save, stranger, tmp_path, monkeypatch, capsys
):
    url, asked = stranger
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    checkpoint = save(name, **(dict(model_kwargs=HIFUSE) if name == "hifuse_tiny" else {}))
    content = torch.load(checkpoint, weights_only=False)
    attack = json.loads(json.dumps(attack).replace("{url}", url))
    content["args"].model_kwargs = content["args"].model_kwargs | attack
    torch.save(content, checkpoint)
    options = ["--model", name, "--checkpoint", checkpoint]
    codes = [evaluate(data, *options), explain(data, *options)]
    if name == "hifuse_tiny":
        codes.append(main(["publish", *map(str, options), "--dataset", "covid19ct", "--dry-run", "out"]))
    errors = capsys.readouterr().err.splitlines()
    assert set(codes) == {1} and len(errors) == len(codes)
    for error in errors:
        assert f"model_kwargs that do not describe a network {name}: " in error
        assert all(repr(key) in error for key in attack)
    assert asked == [] and list((tmp_path / "here").iterdir()) == []


def test_what_timm_takes_for_itself_is_not_of_a_network_whatever_its_class_takes(data, save, capsys, monkeypatch):
    class Stranger(timm.models.model_entrypoint("test_resnet")().__class__):
        def __init__(self, checkpoint_path="", pretrained_strict=True, **kwargs):
            super().__init__(**kwargs)

    monkeypatch.setattr("timm.models.resnet.Stranger", Stranger, raising=False)
    for attack in (dict(checkpoint_path="x.pth"), dict(pretrained_strict=False)):
        checkpoint = save("test_resnet")
        content = torch.load(checkpoint, weights_only=False)
        content["args"].model_kwargs = attack
        torch.save(content, checkpoint)
        assert evaluate(data, "--model", "test_resnet", "--checkpoint", checkpoint) == 1
        assert "model_kwargs that do not describe a network test_resnet: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model_kwargs", "words"),
    [
        (HIFUSE | dict(window_size=100_000), "window_size 100000 is of a larger network"),
        (HIFUSE | dict(depths=[10**9, 1]), "depths [1000000000, 1] is of a larger network"),
        (HIFUSE | dict(dims=[]), "dims, depths and num_heads have: dims=()"),
        (HIFUSE | dict(branches="local"), "the checkpoint is of a HiFuse of dims (16, 32)"),
        (HIFUSE | dict(drop_path_rate="much"), "model hifuse_tiny cannot be built with"),
        (HIFUSE | dict(img_size=[]), "model hifuse_tiny cannot be built with"),
    ],
)
def test_arguments_that_make_no_network_or_another_are_one_error(model_kwargs, words, data, save, capsys):
    checkpoint = save("hifuse_tiny", model_kwargs=HIFUSE)
    content = torch.load(checkpoint, weights_only=False)
    content["args"].model_kwargs = model_kwargs
    torch.save(content, checkpoint)
    for command in (evaluate, explain):
        assert command(data, "--model", "hifuse_tiny", "--checkpoint", checkpoint) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_mode_of_images_must_have_the_channels_of_the_network(data, save, capsys):
    checkpoint = save("test_convnext", input_img_mode="L")
    assert evaluate(data, "--model", "test_convnext", "--checkpoint", checkpoint) == 1
    assert "input_img_mode L, of 1 channels; its network takes 3" in capsys.readouterr().err


def test_number_of_classes_is_that_of_the_weights(data, capsys):
    """timm would give pretrained weights a new classifier, whose figures say nothing."""
    assert evaluate(data, "--model", "test_convnext", "--pretrained", "--model-kwargs", "num_classes=2") == 1
    assert "model_kwargs has num_classes, which the weights say themselves" in capsys.readouterr().err


# What the classes are


def move_classes(data, *names):
    """Renames the class folders, and takes away what names them."""
    (data / "dataset.json").unlink()
    for old, new in zip(LABELS, names, strict=True):
        (data / "test" / old).rename(data / "test" / new)


def classes_of(tmp_path) -> list[str]:
    return list(json.loads((tmp_path / "run.json").read_text())["per_class"])


def test_class_map_of_the_training_names_the_classes(data, save, seen, tmp_path, monkeypatch, capsys):
    """Over dataset.json, in whose order the training did not have them."""
    monkeypatch.chdir(tmp_path)
    checkpoint = save("test_convnext", class_map="maps/classes.txt")
    options = ["--model", "test_convnext", "--checkpoint", checkpoint]
    for command in (evaluate, explain):
        assert command(data, *options) == 1
        assert "was given the class map maps/classes.txt" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("\n".join(LABELS[::-1]))
    assert evaluate(data, *options, "--class-map", "mine.txt", "--json", "run.json") == 0
    assert classes_of(tmp_path) == LABELS[::-1]
    (tmp_path / "maps").mkdir()
    (tmp_path / "mine.txt").rename(tmp_path / "maps" / "classes.txt")
    assert evaluate(data, *options) == explain(data, *options) == 0
    assert {trained.class_names for trained, _ in seen} == {tuple(LABELS[::-1])}
    assert "classes: named by class map maps/classes.txt" in capsys.readouterr().out
    (tmp_path / "maps").rename(data / "train")
    (data / "train" / "maps").mkdir()
    (data / "train" / "classes.txt").rename(data / "train" / "maps" / "classes.txt")  # where timm looks, too
    assert evaluate(data, *options, "--json", "again.json") == 0
    assert (tmp_path / "again.json").read_text().count("train/maps/classes.txt") == 1


def test_weights_of_a_class_map_in_another_order_are_not_published(save, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hifuse, "HiFuse", partial(hifuse.HiFuse, **NARROW))
    checkpoint = save("hifuse_tiny", class_map=str(tmp_path / "map.txt"))
    publish = ["publish", "--model", "hifuse_tiny", "--checkpoint", str(checkpoint), "--dataset", "covid19ct"]
    publish += ["--dry-run", str(tmp_path / "out")]
    assert main(publish) == 1
    assert "was given the class map" in capsys.readouterr().err
    (tmp_path / "map.txt").write_text("\n".join(LABELS[::-1]))
    assert main(publish) == 1
    assert "has classes in the order of its class map, CT_NonCOVID, CT_COVID" in capsys.readouterr().err
    (tmp_path / "map.txt").write_text("\n".join(LABELS) + "\n")
    assert main(publish) == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("map.txt", b"CT_COVID\n\nCT_NonCOVID", "line 2 is empty"),
        ("map.txt", b"CT_COVID\nCT_COVID", "line 2 names a class again"),
        ("map.txt", b"\xff\xfe", "is no text in UTF-8"),
        ("map.txt", b"a" * (1 << 20) + b"b", "too many for a list of classes"),
        ("map.txt", b"CT_COVID\nCT_NonCOVID\nother", "has 2 classes, class map"),
        ("map.pkl", b"\x80\x04}.", "must be a text file with the name of a class on each line"),
        ("//host/share/map.txt", None, "was given the class map //host/share/map.txt, which says the order"),
        ("/{tmp_path}/map.txt", b"CT_COVID\nCT_NonCOVID", "which says the order of the classes and is not there"),
        (r"\\host\share\map.txt", None, "which says the order of the classes and is not there"),
    ],
)
def test_class_map_is_a_text_of_this_machine(name, content, words, data, save, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = name.replace("{tmp_path}", str(tmp_path))
    if content is not None:
        Path(name).write_bytes(content)
    checkpoint = save("test_convnext", class_map=name)
    assert evaluate(data, "--model", "test_convnext", "--checkpoint", checkpoint) == 1
    assert words in capsys.readouterr().err


def test_pretrained_weights_name_their_classes_unless_a_class_map_does(data, tmp_path, seen, caplog):
    torch.manual_seed(0)
    model, labels = timm.create_model("hifuse_tiny", num_classes=2, **HIFUSE), dict(label_names=LABELS[::-1])
    timm.models.save_for_hf(model, tmp_path / "saved", labels, HIFUSE, safe_serialization=True)
    (data / "dataset.json").unlink()  # nothing else names them
    options = ["--model", f"local-dir:{tmp_path / 'saved'}"]
    assert evaluate(data, *options, "--pretrained") == explain(data, *options) == 0
    assert [trained.class_names for trained, _ in seen] == 2 * [tuple(LABELS[::-1])] and caplog.records == []
    (tmp_path / "map.txt").write_text("\n".join(LABELS))
    assert explain(data, *options, "--class-map", tmp_path / "map.txt") == 0
    assert seen[-1][0].class_names == tuple(LABELS)


def test_order_of_classes_that_nothing_says_is_a_warning(data, save, seen, caplog):
    checkpoint = save("test_convnext")
    options = ["--model", "test_convnext", "--checkpoint", checkpoint]
    move_classes(data, "class10", "class9")
    assert evaluate(data, *options) == 0
    assert seen[-1][0].class_names == ("class9", "class10")  # as timm sorts
    (record,) = caplog.records
    assert "has neither dataset.json nor train" in record.message and "taken to be class9, class10" in record.message
    caplog.clear()
    (data / "train").symlink_to(data / "test")
    assert evaluate(data, *options) == explain(data, *options) == 0
    assert seen[-1][0].class_names == ("class9", "class10") and caplog.records == []


def test_order_of_the_authors_code_is_a_warning_where_it_is_another(data, save, caplog):
    """Weights without the arguments of train.py, as convert writes them, may be of a training by that code."""
    checkpoint = save("hifuse_tiny", model_kwargs=HIFUSE)
    torch.save(torch.load(checkpoint, weights_only=False)["state_dict"], checkpoint)
    kwargs = [f"{key}={value}".replace(" ", "") for key, value in HIFUSE.items()]
    options = ["--model", "hifuse_tiny", "--checkpoint", checkpoint, "--model-kwargs", *kwargs]
    words = "the authors' code and torchvision sort folders as class10, class9"
    assert evaluate(data, *options) == 0
    assert words not in caplog.text
    move_classes(data, "class10", "class9")
    (data / "train").symlink_to(data / "test")
    assert evaluate(data, *options) == 0
    assert words in caplog.text and "the classes are taken in the order class9, class10" in caplog.text


def test_images_that_are_left_out_are_counted_and_named(data, save, tmp_path, caplog, capsys):
    options = ["--model", "test_convnext", "--checkpoint", save("test_convnext"), "--json", tmp_path / "run.json"]
    image = Image.new("RGB", (40, 40))
    for file in ("CT_COVID/a.tif", "CT_COVID/b.BMP", "CT_NonCOVID/c.webp", "other/d.tiff"):
        (data / "test" / file).parent.mkdir(exist_ok=True)
        image.save(data / "test" / file, format="PNG")
    (data / "test" / "CT_COVID" / "notes.txt").write_text("no image")
    assert evaluate(data, *options) == 0
    assert json.loads((tmp_path / "run.json").read_text())["counts"] == dict(images=2, classes=2)
    assert "4 of the files in" in caplog.text
    assert "test/CT_COVID/a.tif, test/CT_COVID/b.BMP, test/CT_NonCOVID/c.webp, test/other/d.tiff" in caplog.text


def test_links_count_no_image_twice(data, save, tmp_path, caplog):
    folder = data / "test" / "CT_COVID"
    (folder / "loop").symlink_to(data / "test")
    (folder / "self").symlink_to(folder)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "loop").symlink_to(data)
    (folder / "again.png").symlink_to(folder / "0.png")
    (data / "test" / "CT_ALIAS").symlink_to(folder)  # sorted before what it leads to
    (tmp_path / "elsewhere").mkdir()
    (data / "test" / "CT_NonCOVID").rename(tmp_path / "elsewhere" / "images")
    (data / "test" / "CT_NonCOVID").symlink_to(tmp_path / "elsewhere" / "images")  # a link that is no loop
    options = ["--model", "test_convnext", "--checkpoint", save("test_convnext"), "--json", tmp_path / "run.json"]
    assert evaluate(data, *options) == 0
    assert json.loads((tmp_path / "run.json").read_text())["counts"] == dict(images=2, classes=2)
    assert "are links to what is there already, and count once" in caplog.text


# What is said of a choice


def test_screen_says_which_weights_and_which_transform_were_taken(data, save, caplog, capsys):
    checkpoint = save("test_convnext", mean=[0.3], img_size=64)
    content = torch.load(checkpoint, weights_only=False)
    options = ["--model", "test_convnext", "--checkpoint", checkpoint]
    torch.save(content | dict(state_dict_ema=content["state_dict"], epoch=13), checkpoint)
    assert evaluate(data, *options, "--std", "0.25") == 0
    printed = capsys.readouterr().out
    assert f"weights: averaged (EMA) weights in {checkpoint}, after epoch 13" in printed
    assert "mean 0.3 0.3 0.3, std 0.25 0.25 0.25: as the training's arguments say, but for std" in printed
    assert "holds trained and averaged (EMA) weights: the averaged ones are taken" in caplog.text
    caplog.clear()
    assert evaluate(data, *options, "--no-use-ema") == explain(data, *options, "--use-ema") == 0
    assert f"weights: trained weights in {checkpoint}" in capsys.readouterr().out and caplog.records == []

    torch.save(content["state_dict"], checkpoint)
    for command in (evaluate, explain):
        caplog.clear()
        assert command(data, *options) == 0
        (record,) = caplog.records
        assert "holds no training arguments, so images are taken at 160x160 pixels, crop 0.95" in record.message
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5: as the settings of test_convnext say" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "Expecting value"),
        ("[]", "it holds a list, expected an object"),
        ('{"classes": []}', "its classes are [], expected a list of names"),
        ('{"classes": "ab"}', "its classes are 'ab', expected a list of names"),
        ('{"classes": ["a", 1]}', "expected a list of names"),
        ('{"classes": ["a", "a"]}', "expected different names"),
        ('{"classes": ["a", "b"], "name": ["covid19ct"]}', "its name is ['covid19ct'], expected a string"),
        ('{"classes": ["a", "b"], "title": 3}', "its title is 3, expected a string"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_description_that_is_not_as_prepare_writes_it_is_found_before_the_work(
    content, words, data, save, monkeypatch, capsys
):
    (data / "dataset.json").write_text(content)
    options = ["--model", "test_convnext", "--checkpoint", save("test_convnext")]
    monkeypatch.setattr(timm, "create_model", None)  # nothing comes to that
    for command in (evaluate, explain):
        assert command(data, *options) == 1
        error = capsys.readouterr().err
        assert "dataset.json is not as prepare writes it (" in error and words in error


@pytest.mark.parametrize("key", ["checkpoint_path", "cache_dir", "pretrained_cfg_overlay", "scriptable"])
def test_config_of_a_published_model_says_what_a_network_is_and_nothing_else(key, tmp_path):
    args = HIFUSE | {key: str(tmp_path / "other.pth")}
    torch.save({}, tmp_path / "other.pth")
    config = dict(architecture="hifuse_tiny", num_classes=2, model_args=args, pretrained_cfg=dict(num_classes=2))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"has model_args that do not describe a network hifuse_tiny: '{key}'; expe"):
        load_trained(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("key, value", [("dims", [16, 10**6]), ("depths", [1, 10**8]), ("window_size", 10**5)])
def test_small_file_asks_for_no_large_network(key, value, save, tmp_path):
    path = save("hifuse_tiny", model_kwargs=HIFUSE)
    content = torch.load(path, weights_only=False)
    content["args"].model_kwargs = HIFUSE | {key: value}
    torch.save(content, path)
    words = rf"checkpoint is of a HiFuse of dims \(16, 32\).* {key} .* of a larger network: timm.create_model"
    with pytest.raises(ValueError, match=words):
        load_trained("hifuse_tiny", path)

    save_file(content["state_dict"], tmp_path / "model.safetensors")
    config = dict(architecture="hifuse_tiny", num_classes=2, model_args=HIFUSE | {key: value}, pretrained_cfg={})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load_trained(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("named", ["a" * 3000, "a" * 3000 + ".txt", "b/" * 3000 + "c.txt"])
def test_class_map_of_any_name_is_missed_in_one_short_line(named, data, save):
    with pytest.raises(FileNotFoundError, match="was given the class map [ab/]+…[abc/.tx]+, which says") as refusal:
        load_trained("hifuse_tiny", save("hifuse_tiny", model_kwargs=HIFUSE, class_map=named), data_dir=data)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("architecture", ["a\nb", "a" * 3000])
def test_config_of_an_unknown_model_is_one_short_line(architecture, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(architecture=architecture, pretrained_cfg={})))
    with pytest.raises(RuntimeError, match=r"model local-dir:.*: Unknown model \(a") as refusal:
        load_trained(f"local-dir:{tmp_path}")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400
