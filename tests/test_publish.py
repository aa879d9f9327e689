"""What `publish` writes, and what it refuses before any long work."""

import argparse
import json
import runpy
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard, SpaceCard
from safetensors.torch import save_file

from hifuse_timm.__main__ import main
from hifuse_timm.datasets import DATASETS

METRICS = {
    "accuracy": 0.8299,
    "f1": 0.7299,
    "top|2\n---\n# <b>": 0.9,
    "by_class": {"MEL": 0.6},
    "split": "test",
    "final": True,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, full_width):
    """What train.py saves of a full-width hifuse_tiny: averaged weights too, whose classifier has another bias."""
    path = tmp_path_factory.mktemp("training") / "model_best.pth.tar"
    state_dict = full_width("hifuse_tiny").state_dict()
    args = argparse.Namespace(
        epochs=300, lr=1e-4, opt="adamw # [x](y)", data_dir="/home/jane/isic", mixup=0.0, img_size=192
    )
    args.loss, args.loss_pos_weight = "bce", "3,0.5"
    args.amp, args.amp_dtype = True, "bfloat16"
    averaged = state_dict | {"head.fc.bias": state_dict["head.fc.bias"] + 1}
    torch.save(
        dict(epoch=7, arch="hifuse_tiny", state_dict=state_dict, state_dict_ema=averaged, args=args, version=2), path
    )
    return path


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory, checkpoint):
    """The directory that a dry run with everything given wrote."""
    directory = tmp_path_factory.mktemp("dry_run") / "hifuse_tiny.isic2018"
    metrics = directory.parent / "metrics.json"
    metrics.write_text(json.dumps(METRICS))
    options = ["--metrics", str(metrics), "--repo-id", "clinic/skin", "--dry-run", str(directory)]
    assert publish(checkpoint, *options) == 0
    return directory


def publish(checkpoint: Path, *options: str, model: str = "hifuse_tiny", dataset: str = "isic2018") -> int:
    return main(["publish", "--model", model, "--checkpoint", str(checkpoint), "--dataset", dataset, *options])


@pytest.fixture
def narrow_file(narrow, tmp_path):
    """A file of narrow weights, which no registered model has, for what fails before it comes to that."""
    path = tmp_path / "narrow.safetensors"
    save_file(narrow().state_dict(), path)
    return path


@torch.no_grad()
def test_dry_run_loads_bit_identically(dry_run, full_width):
    assert {p.name for p in dry_run.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert [p.name for p in dry_run.parent.iterdir() if p.name.startswith(".")] == []
    x = torch.ones(1, 3, 64, 64)
    model = timm.create_model(f"local-dir:{dry_run}", pretrained=True).eval()
    source = full_width("hifuse_tiny")
    averaged = source.head.norm(source.head.global_pool(source.forward_features(x))).flatten(1)
    expected = torch.nn.functional.linear(averaged, source.head.fc.weight, source.head.fc.bias + 1)
    assert torch.equal(model(x), expected)
    assert model.pretrained_cfg["input_size"] == (3, 192, 192)  # as trained


def test_card_says_what_it_is_how_to_load_it_and_how_good_it_is(dry_run):
    card = ModelCard.load(dry_run / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == {
        "accuracy": 0.8299,
        "f1": 0.7299,
        r"top|2\n---\n# <b>": 0.9,
    }
    assert {r.dataset_name for r in card.data.eval_results} == {"ISIC 2018"}
    checksum = subprocess.run(["sha256sum", dry_run / "model.safetensors"], capture_output=True, text=True).stdout
    for words in (
        'timm.create_model("hf-hub:clinic/skin", pretrained=True)',
        "54,673,217 parameters",
        "192x192 pixels",
        DATASETS["isic2018"].citation,
        "| 4 | MEL | melanoma |",
        "| accuracy | 0.8299 |",
        r"| top\|2\\n---\\n# \<b\> | 0.9 |",
        "| lr | 0.0001 |",
        "| loss_pos_weight | 3,0.5 |",
        "| amp_dtype | bfloat16 |",
        r"| opt | adamw # \[x\](y) |",
        "averaged (EMA) weights",
        checksum.split()[0],
    ):
        assert words in card.text
    assert "/home/jane" not in card.content


@pytest.mark.parametrize(
    ("options", "epoch", "expected"),
    [
        ([], 7, ["| epochs | 8 of 300 |", "| model_ema_decay | 0.99 |"]),
        (["--no-use-ema"], 299, ["| epochs | 300 |"]),
        (["--no-use-ema"], None, ["| epochs | an unknown number of 300 |"]),
    ],
)
def test_card_says_what_happened_to_these_weights(options, epoch, expected, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content["args"].model_ema, content["args"].model_ema_decay = True, 0.99
    torch.save(content | dict(epoch=epoch), tmp_path / "last.pth.tar")
    assert publish(tmp_path / "last.pth.tar", *options, "--dry-run", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith(("| epochs", "| model_ema_decay"))] == expected
    assert ("model_ema" in card) == (not options)


def test_transformers_loads_what_is_published(dry_run):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(dry_run).eval()
    ours = timm.create_model(f"local-dir:{dry_run}", pretrained=True).eval()
    x = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, ours(x), rtol=1e-5, atol=1e-5)
    assert model.config.id2label == dict(enumerate(DATASETS["isic2018"].labels))


def test_config_gives_each_argument_of_the_network_once(dry_run):
    config = json.loads((dry_run / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == len(config["label_names"]) == 7
    assert "model_args" not in config  # transformers would pass num_classes twice
    assert config["pretrained_cfg"]["pool_size"] == [6, 6]


@torch.no_grad()
def test_dry_run_keeps_channels_and_pooling_of_the_training(full_width, tmp_path):
    state_dict = dict(full_width("hifuse_tiny").state_dict())
    for key in ("local_stem.0.weight", "global_stem.0.weight"):
        state_dict[key] = state_dict[key][:, :1]
    for key in ("head.fc.weight", "head.fc.bias"):
        state_dict[key] = state_dict[key][:2]
    torch.save(dict(state_dict=state_dict, args=argparse.Namespace(gp="max", mean=[0.4])), tmp_path / "last.pth.tar")
    assert publish(tmp_path / "last.pth.tar", "--dry-run", str(tmp_path / "out"), dataset="covid19ct") == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.in_chans, model.num_classes, model.head.global_pool.pool_type) == (1, 2, "max")
    data_config = timm.data.resolve_model_data_config(model)
    assert (data_config["mean"], data_config["std"]) == ([0.4], [0.5])
    assert "license: unknown" in (tmp_path / "out" / "README.md").read_text()


def test_dry_run_replaces_its_own_and_nothing_else(dry_run, checkpoint, tmp_path, capsys):
    assert publish(checkpoint, "--repo-id", "clinic/other", "--dry-run", str(dry_run)) == 0
    assert "clinic/other" in (dry_run / "README.md").read_text()
    names = {path.name for path in dry_run.iterdir()}
    for name in ("README.md", "thesis.tex"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")  # alone in its folder
        (dry_run / "mine").write_text("mine")  # beside what an earlier dry run wrote
        for folder, kept in ((tmp_path / name, name), (dry_run, "mine")):
            assert publish(checkpoint, "--dry-run", str(folder)) == 1
            assert f"{folder} holds other files, {kept} among them" in capsys.readouterr().err
            assert (folder / kept).read_text() == "mine"
    (dry_run / "mine").unlink()
    assert {path.name for path in dry_run.iterdir()} == names


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(model="hifuse_huge"), "model 'hifuse_huge' is not registered: expected one of hifuse_base, "),
        (dict(dataset="imagenet"), "dataset 'imagenet' is not known: expected one of isic2018, covid19ct, kvasir"),
        (dict(), "the checkpoint is of a HiFuse of dims (16, 32, 64, 128)"),
        (dict(model="hifuse_tiny_dense"), "the model is hifuse_tiny_dense"),
    ],
)
def test_publish_names_what_does_not_fit(options, words, narrow_file, tmp_path, capsys):
    assert publish(narrow_file, "--dry-run", str(tmp_path / "out"), **options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_publish_refuses_weights_of_other_classes(checkpoint, tmp_path, capsys):
    assert publish(checkpoint, "--dry-run", str(tmp_path / "out"), dataset="kvasir") == 1
    assert "has 7 classes, kvasir has 8: dyed-lifted-polyps" in capsys.readouterr().err


@pytest.mark.parametrize("repo_id", ["a b/c", "a/b/c", "clinic/skin.git"])
def test_publish_refuses_an_id_that_is_not_valid(repo_id, narrow_file, tmp_path, capsys):
    assert publish(narrow_file, "--repo-id", repo_id) == 1
    assert repo_id in capsys.readouterr().err


def test_publish_without_a_token_or_a_checkpoint_says_so(narrow_file, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert publish(narrow_file) == 1
    assert "publish needs a token of the Hub that may write: run `hf auth login`, or set HF_TOKEN" in (
        capsys.readouterr().err
    )
    assert publish(tmp_path / "none.pth", "--dry-run", str(tmp_path / "out")) == 1
    assert "none.pth does not exist" in capsys.readouterr().err
    assert publish(narrow_file, "--use-ema", "--dry-run", str(tmp_path / "out")) == 1
    assert "no averaged (EMA) weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, words",
    [
        ("{accuracy: 1", "are no JSON"),
        ("[0.8]", "are a list, expected an object"),
        ('{"split": "test"}', "expected finite numbers"),
        ('{"accuracy": NaN}', "expected finite numbers"),
    ],
)
def test_publish_refuses_metrics_of_another_form(content, words, narrow_file, tmp_path, capsys):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(content)
    assert publish(narrow_file, "--metrics", str(metrics), "--dry-run", str(tmp_path / "out")) == 1
    assert words in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_published(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict_ema"]["head.fc.bias"] = torch.full((7,), torch.inf)
    torch.save(content, tmp_path / "diverged.pth.tar")
    assert publish(tmp_path / "diverged.pth.tar", "--dry-run", str(tmp_path / "out")) == 1
    assert "not finite, as after a training that diverged: head.fc.bias" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line_without_a_traceback(capsys):
    assert main(["convert", "none.pth", "out.safetensors"]) == 1
    assert capsys.readouterr().err == "error: checkpoint none.pth does not exist or is not a file\n"


def test_space_of_a_dry_run_serves_what_is_published(checkpoint, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "out"
    options = ["--repo-id", "clinic/skin", "--dry-run", str(directory), "--space"]
    assert publish(checkpoint, *options) == 0
    space = directory / "space"
    assert {path.name for path in space.iterdir()} == {"README.md", "app.py", "requirements.txt"}
    data = SpaceCard.load(space / "README.md").data
    assert (data.sdk, data.app_file, data.models) == ("gradio", "app.py", ["clinic/skin"])
    assert (space / "requirements.txt").read_text().startswith("hifuse-timm[demo] @ git+https://")
    served = []
    monkeypatch.setattr("hifuse_timm.cli.demo.serve", lambda *args, **options: served.append((args, options)))
    runpy.run_path(str(space / "app.py"))
    assert served == [(("hf-hub:clinic/skin",), {"host": "0.0.0.0"})]

    assert publish(checkpoint, *options[:-1]) == 0 and not space.exists()  # replaces its own
    assert publish(checkpoint, *options) == 0
    (space / "app.py").write_text("mine")
    assert publish(checkpoint, *options) == 1
    assert "holds other files" in (error := capsys.readouterr().err) and "space/app.py" in error
    assert publish(checkpoint, "--space") == 1
    assert "space is written into a dry run: give dry_run (--dry-run DIR)" in capsys.readouterr().err
