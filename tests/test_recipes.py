"""The recipes hold Table 2 of the paper and the authors' augmentation, and timm's train.py takes them as they are."""

import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import train_like_timm
import yaml
from PIL import Image
from pytest import approx, mark
from timm.loss import create_classification_loss, resolve_class_weights
from timm.optim import create_optimizer_v2, optimizer_kwargs
from train_like_timm import TRAIN_PY, create_loaders, create_schedule, read_recipe

from hifuse_timm import DATASETS
from hifuse_timm.__main__ import main
from hifuse_timm.recipes import recipe_path

TABLE_2 = dict(
    img_size=224,
    opt="adamw",
    drop_path=0.0,
    lr=1e-4,
    min_lr=1e-6,
    weight_decay=0.01,
    opt_betas=[0.9, 0.999],
    batch_size=32,
    epochs=100,
    sched="cosine",
    warmup_epochs=1,
)
# of the authors' code: what Table 2 leaves open of the schedule, the transforms, the loss
FURTHER = dict(
    sched_on_updates=True,
    warmup_lr=1e-7,
    warmup_prefix=False,
    cooldown_epochs=0,
    mean=[0.5, 0.5, 0.5],
    std=[0.5, 0.5, 0.5],
    scale=[0.08, 1.0],
    ratio=[3 / 4, 4 / 3],
    train_interpolation="bilinear",
    hflip=0.5,
    vflip=0.0,
    color_jitter=None,
    aa=None,
    reprob=0.0,
    mixup=0.0,
    cutmix=0.0,
    crop_pct=0.875,
    interpolation="bilinear",
    smoothing=0.0,
)
# of what `prepare` writes
DATA = dict(train_split="train", val_split="val", eval_metric="top1")


def expected(tag: str) -> dict:
    return TABLE_2 | FURTHER | DATA | dict(num_classes=DATASETS[tag].num_classes)


@mark.parametrize("tag", DATASETS)
def test_recipe_holds_table_2_and_the_authors_augmentation_and_nothing_else(tag):
    assert yaml.safe_load(recipe_path(tag).read_text(encoding="utf-8")) == expected(tag)


@mark.skipif(TRAIN_PY is None, reason="HIFUSE_TIMM_TRAIN_PY does not say where timm's train.py is")
@mark.parametrize("tag", DATASETS)
def test_train_py_gives_back_every_value(tag):
    defaults = vars(train_like_timm.parse_with_train_py())
    assert expected(tag).keys() <= defaults.keys()  # a name that it does not know, it takes without a word
    args = vars(train_like_timm.parse_with_train_py("--config", str(recipe_path(tag)), "--batch-size", "8"))
    assert args == defaults | expected(tag) | dict(batch_size=8)


def test_optimizer_has_the_settings_of_table_2_and_spares_norms_and_biases_from_decay(narrow):
    optimizer = create_optimizer_v2(narrow(), **optimizer_kwargs(cfg=read_recipe("isic2018")))
    assert type(optimizer) is torch.optim.AdamW
    decays = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert decays.keys() == {0.0, 0.01}
    assert all(parameter.ndim >= 2 for parameter in decays[0.01])
    for group in optimizer.param_groups:
        assert group["lr"] == 1e-4 and tuple(group["betas"]) == (0.9, 0.999)


def test_learning_rate_warms_up_over_one_epoch_then_falls_along_a_cosine_to_the_minimum():
    updates = 20  # an epoch
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler, epochs = create_schedule(read_recipe("isic2018"), optimizer, updates)
    assert epochs == 100
    rates = []
    for epoch in range(epochs):
        for i in range(updates):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step_update(epoch * updates + i + 1)
        scheduler.step(epoch + 1)
    warmup, decay = rates[:updates], rates[updates:]
    assert warmup == approx([1e-7 + (1e-4 - 1e-7) * i / updates for i in range(updates)])
    cosine = [1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * t / (100 * updates))) / 2 for t in range(100 * updates)]
    assert decay == approx(cosine[updates:])
    assert decay[0] == approx(1e-4, rel=1e-3) and decay[-1] == approx(1e-6, rel=1e-3)


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """The loaders of the recipe on white images, 300x400 pixels, black but for the middle 150x150."""
    root = tmp_path_factory.mktemp("white")
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    pixels[75:225, 125:275] = 255
    for split in ("train", "val"):
        for label in DATASETS["covid19ct"].labels:
            (root / split / label).mkdir(parents=True)
            for i in range(16):
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return create_loaders(read_recipe("covid19ct"), root)


def test_training_images_are_cropped_and_flipped_at_random_and_no_more(loaders):
    transforms = loaders[0].dataset.transform.transforms
    crop, flip, *rest = transforms
    assert [type(t).__name__ for t in rest] == ["MaybeToTensor", "Normalize"]
    assert (tuple(crop.size), tuple(crop.scale), tuple(crop.ratio)) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert type(flip).__name__ == "RandomHorizontalFlip" and flip.p == 0.5
    assert "bilinear" in str(crop)
    (images, classes), *rest = loaders[0]
    assert images.shape == (32, 3, 224, 224) and rest == []
    assert images.min() == -1 and images.max() == 1  # mean and std 0.5
    assert sorted(classes.tolist()) == [0] * 16 + [1] * 16


def test_test_images_are_the_middle_224_pixels_of_256(loaders):
    (images, _), *_ = loaders[1]
    assert images.shape == (32, 3, 224, 224)
    # 300 pixels become 256, of which the crop leaves out 16 a side: the square of 150 starts at (75 * 256 / 300) - 16
    row = images[0, 0, 112]
    assert row.min() == -1 and row.max() == 1
    bright = (row > 0).nonzero().flatten()
    assert bright[0].item() == approx(48, abs=1) and bright[-1].item() == approx(175, abs=1)


@pytest.fixture
def balanced(tmp_path):
    """A recipe with a balanced loss, the images of each class in train, and the options that wrote it."""
    counts = {label: 10 * 3**k for k, label in enumerate(DATASETS["isic2018"].labels)}
    content = dict(name="isic2018", classes=list(counts), counts=dict(train=counts, test={}))
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    options = ["--balanced", "--data-dir", str(tmp_path), "--out", str(tmp_path / "balanced.yaml")]
    assert main(["recipe", "isic2018", *options]) == 0
    return tmp_path / "balanced.yaml", torch.tensor(list(counts.values())), options


def test_balanced_recipe_gives_a_class_the_weight_of_all_others(balanced):
    path, counts, _ = balanced
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {key: recipe[key] for key in recipe if not key.startswith("loss")} == expected("isic2018")
    loss = create_classification_loss(recipe["loss"], pos_weight=resolve_class_weights(recipe["loss_pos_weight"]))
    # of each image of a class its share of the loss where the network tells nothing, times the number of images
    unsure = torch.zeros(7, 7)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        unsure, torch.eye(7), pos_weight=loss.pos_weight, reduction="none"
    )
    torch.testing.assert_close(loss(unsure, torch.arange(7)), losses.mean())
    total = losses * counts[:, None]
    assert total.diag().tolist() == approx((total.sum(0) - total.diag()).tolist(), rel=1e-4)


@mark.skipif(TRAIN_PY is None, reason="HIFUSE_TIMM_TRAIN_PY does not say where timm's train.py is")
def test_train_py_takes_the_balanced_recipe(balanced):
    recipe = yaml.safe_load(balanced[0].read_text(encoding="utf-8"))
    args = vars(train_like_timm.parse_with_train_py("--config", str(balanced[0])))
    assert recipe.items() <= args.items()


@mark.parametrize(
    "tag, left_out, words",
    [
        ("isic2018", "--balanced", "--balanced, --data-dir and --out go together"),
        ("isic2018", "--out", "--balanced, --data-dir and --out go together"),
        ("covid19ct", None, "has the classes AKIEC, BCC, BKL, DF, MEL, NV, VASC, the recipe covid19ct is for CT_COVID"),
    ],
)
def test_balanced_recipe_that_cannot_be_is_one_error(tag, left_out, words, balanced, capsys):
    _, _, options = balanced
    if left_out:
        at = options.index(left_out)
        del options[at : at + (1 if left_out == "--balanced" else 2)]
    assert main(["recipe", tag, *options]) == 1
    assert words in capsys.readouterr().err


def test_balanced_recipe_needs_counts_that_are_numbers(balanced, capsys):
    path, _, options = balanced
    for counts, words in (
        ({"train": {"AKIEC": 3}}, "has no counts of all classes in train"),
        ({"train": {"AKIEC": "many"}}, "its counts are {'train': {'AKIEC': 'many'}}, expected for each split"),
    ):
        content = dict(classes=list(DATASETS["isic2018"].labels), counts=counts)
        path.with_name("dataset.json").write_text(json.dumps(content))
        assert main(["recipe", "isic2018", *options]) == 1
        assert words in capsys.readouterr().err


@mark.parametrize("tag", DATASETS)
def test_command_prints_the_path_alone(tag, capsys):
    assert main(["recipe", tag]) == 0
    assert Path(capsys.readouterr().out.removesuffix("\n")).read_bytes() == recipe_path(tag).read_bytes()


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["recipe", "--help"])
    text = capsys.readouterr().out
    assert all(tag in text for tag in DATASETS)


def test_unknown_recipe_is_one_clear_error(capsys):
    assert main(["recipe", "isic2017"]) == 1
    error = capsys.readouterr().err
    assert error == "error: recipe 'isic2017' does not exist: expected one of isic2018, covid19ct, kvasir\n"


def test_wheel_holds_the_recipes(tmp_path):
    source = Path(__file__).parents[1]
    shutil.copytree(source / "hifuse_timm", tmp_path / "hifuse_timm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(source / name, tmp_path)
    build = "import setuptools.build_meta; setuptools.build_meta.build_wheel('.')"
    result = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {p.relative_to(source).as_posix() for p in (source / "hifuse_timm").rglob("*.py")}
    assert modules | {f"hifuse_timm/recipes/{tag}.yaml" for tag in DATASETS} <= set(names)
