"""`evaluate` and `average`: metrics that are scikit-learn's, and commands that measure what they say."""

import argparse
import csv
import json

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from huggingface_hub import ModelCard
from PIL import Image
from timm.data import create_transform, resolve_data_config

from hifuse_timm.__main__ import main
from hifuse_timm.bootstrap import bootstrap_intervals
from hifuse_timm.datasets import DATASETS
from hifuse_timm.evaluate.columns import Columns
from hifuse_timm.metrics import compute_metrics
from hifuse_timm.paper import PAPER_METHODS, PAPER_RESULTS, paper_result
from hifuse_timm.predictions import read_predictions as read_table
from hifuse_timm.runs import METRICS

LABELS = list(DATASETS["isic2018"].labels)
MISSING = "DF"  # the class that the test set lacks; others come behind it


def same(values, expected, tolerance=2e-6):
    values, expected = (np.asarray(v, dtype=float) for v in (values, expected))
    return np.allclose(values, expected, rtol=0, atol=tolerance, equal_nan=True)


# The paper's tables


def test_paper_is_quoted_as_it_is_printed():
    assert PAPER_RESULTS["isic2018"]["HiFuse_Base"] == (84.12, 75.32, 76.52, 74.74)
    assert PAPER_RESULTS["isic2018"]["DeiT-base"] == (72.31, 41.01, 47.19, 44.09)
    assert PAPER_RESULTS["covid19ct"]["Conformer-base-p16"] == (75.81, 75.60, 76.81, 77.81)
    assert PAPER_RESULTS["kvasir"]["HiFuse_Tiny"] == (84.85, 84.89, 84.96, 84.90)
    # the abstract: higher than the baseline by
    for tag, gain in (("isic2018", 7.6), ("covid19ct", 21.5), ("kvasir", 10.4)):
        accuracies = {method: metrics[0] for method, metrics in PAPER_RESULTS[tag].items()}
        assert max(accuracies.values()) - accuracies["ConvNeXt-B"] == pytest.approx(gain)
        assert len(accuracies) == 12
    # what the number of test images allows: 186, and two folds of 2,000
    for accuracy, *_ in PAPER_RESULTS["covid19ct"].values():
        assert accuracy == round(100 * round(accuracy * 1.86) / 186, 2)
    for accuracy, *_ in PAPER_RESULTS["kvasir"].values():
        assert accuracy * 40 == pytest.approx(round(accuracy * 40))


def test_paper_names_models_that_timm_has():
    assert all(timm.is_model(model) for model in PAPER_METHODS)
    methods = set(PAPER_RESULTS["isic2018"])
    assert methods - set(PAPER_METHODS.values()) == {"T2T-ViT_t-24", "Conformer-base-p16"}
    swin = dict(method="Swin-B", accuracy=0.773, f1=0.7729, precision=0.7774, recall=0.7744)
    assert paper_result("swin_base_patch4_window7_224", "kvasir") == swin
    assert paper_result("resnet50", "kvasir") is None and paper_result("hifuse_tiny", None) is None


# The command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ISIC 2018 in miniature as prepare writes it, its test set without one of the classes; sizes and modes differ."""
    root = tmp_path_factory.mktemp("data") / "isic2018"
    rng = np.random.default_rng(0)
    for split, images in (("train", 1), ("test", 4)):
        for k, name in enumerate(LABELS):
            if split == "test" and name == MISSING:
                continue
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                height, width = 40 + 8 * i, 36 + k
                ramp = np.linspace(0.2, 1, height)[:, None, None] * np.ones((1, width, 1))
                image = Image.fromarray((ramp * rng.integers(0, 256, 3)).astype(np.uint8))
                image = image.convert("L") if i == 1 else image
                image.save(root / split / name / f"{k}_{i}.png")
    write_description(root, LABELS)
    return root


def write_description(root, classes, name="isic2018"):
    (root / "dataset.json").write_text(json.dumps(dict(name=name, title="ISIC 2018", classes=classes)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What train.py saves of a narrow hifuse_tiny that was trained at 32 pixels; the averaged weights are its own."""
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", num_classes=7, **NARROW)
    state_dict = model.state_dict() | {"head.fc.weight": 20 * model.head.fc.weight.detach()}
    trained = state_dict | {"head.fc.bias": torch.tensor([9.0, 0, 0, 0, 0, 0, 0])}
    args = argparse.Namespace(model_kwargs=NARROW, img_size=32, mean=[0.3, 0.4, 0.5], std=[0.2], crop_pct=0.8, gp=None)
    path = tmp_path_factory.mktemp("training") / "model_best.pth.tar"
    torch.save(dict(arch="hifuse_tiny", state_dict=trained, state_dict_ema=state_dict, args=args), path)
    return path


def evaluate(data, checkpoint, *options, model="hifuse_tiny") -> int:
    weights = ["--pretrained"] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    command = ["evaluate", "--model", model, *weights, "--data-dir", str(data), "--workers", "0", "--resamples", "50"]
    return main([*command, *map(str, options)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, data, checkpoint):
    """The folder into which the command wrote all that it can."""
    folder = tmp_path_factory.mktemp("run")
    outputs = ["--json", folder / "run.json", "--predictions", folder / "predictions.csv", "--plots", folder / "plots"]
    assert evaluate(data, checkpoint, *outputs) == 0
    return folder


def read_predictions(path):
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return rows, np.array([[float(v) for k, v in row.items() if k.startswith("p_")] for row in rows])


@torch.no_grad()
def expected_probabilities(model, data, files, args=None):
    transform = create_transform(**resolve_data_config(args or {}, model=model))
    images = torch.stack([transform(Image.open(data / file).convert("RGB")) for file in files])
    return model.eval()(images).double().softmax(1).numpy()


def test_predictions_are_those_of_the_network_on_images_as_in_training(run, data, checkpoint):
    rows, probs = read_predictions(run / "predictions.csv")
    assert {row["file"] for row in rows} == {str(p.relative_to(data)) for p in (data / "test").rglob("*.png")}
    content = torch.load(checkpoint, weights_only=False)
    model = timm.create_model("hifuse_tiny", num_classes=7, **NARROW)
    model.load_state_dict(content["state_dict_ema"])
    expected = expected_probabilities(model, data, [row["file"] for row in rows], vars(content["args"]))
    assert np.abs(probs - expected).max() < 1e-4
    assert len({row["predicted"] for row in rows}) > 1  # else the order of the images would not matter
    for row, p in zip(rows, expected, strict=True):
        assert row["file"].split("/")[1] == row["class"] and row["predicted"] == LABELS[p.argmax()]
    assert list(rows[0])[3:] == [f"p_{name}" for name in LABELS]


def test_json_has_the_figures_of_the_predictions_at_the_top(run):
    result = json.loads((run / "run.json").read_text())
    rows, probs = read_predictions(run / "predictions.csv")
    targets = torch.tensor([LABELS.index(row["class"]) for row in rows])
    metrics, by_class = compute_metrics(torch.tensor(probs), targets)
    numbers = {k: v for k, v in result.items() if isinstance(v, (int, float))}
    assert list(numbers) == list(METRICS)
    assert same(list(numbers.values()), [metrics[name] for name in METRICS], 1e-5)
    assert (result["architecture"], result["dataset"], result["split"]) == ("hifuse_tiny", "isic2018", "test")
    assert result["counts"] == dict(images=24, classes=7)
    assert result["paper"]["method"] == "HiFuse_Tiny" and result["paper"]["accuracy"] == 0.8299
    missing = result["per_class"][MISSING]
    assert (missing["images"], missing["recall"], missing["auroc"]) == (0, 0.0, None)
    for k, name in enumerate(LABELS):
        assert result["per_class"][name]["predicted"] == sum(row["predicted"] == name for row in rows)
        assert result["confusion"][k][k] == sum(row["class"] == row["predicted"] == name for row in rows)
        assert same(result["per_class"][name]["f1"], by_class["f1"][k])
    assert result["conditions"]["mean"] == [0.3, 0.4, 0.5] and result["conditions"]["input_size"] == [3, 32, 32]


def test_pictures_are_drawn(run):
    pictures = sorted((run / "plots").iterdir())
    assert [p.name for p in pictures] == ["confusion_matrix.png", "precision_recall.png", "reliability.png", "roc.png"]
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_command_repeats_itself_to_the_byte(run, data, checkpoint, tmp_path, capsys):
    assert evaluate(data, checkpoint, "--json", tmp_path / "run.json", "--predictions", tmp_path / "p.csv") == 0
    assert (tmp_path / "run.json").read_bytes() == (run / "run.json").read_bytes()
    assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "run.json"]
    printed = capsys.readouterr().out
    metrics = json.loads((run / "run.json").read_text())
    assert "hifuse_tiny on ISIC 2018, test: 24 images, 7 classes\n" in printed
    lower, upper = (f"{100 * bound:.2f}" for bound in metrics["intervals"]["accuracy"])
    words = [
        f"{100 * metrics['accuracy']:.2f}",
        lower,
        "-",
        upper,
        "82.99",
        f"{100 * metrics['accuracy'] - 82.99:+.2f}",
    ]
    assert next(line for line in printed.splitlines() if line.startswith("accuracy")).split() == ["accuracy", *words]
    assert next(line for line in printed.splitlines() if line.startswith(MISSING)).split()[-1] == "n/a"


@pytest.mark.parametrize("options", [["--fuse"], ["--batch-size", "5"], ["--workers", "2"]])
def test_how_it_is_computed_leaves_the_figures(options, run, data, checkpoint, tmp_path):
    assert (
        evaluate(data, checkpoint, "--json", tmp_path / "run.json", "--predictions", tmp_path / "p.csv", *options) == 0
    )
    expected, result = (json.loads(path.read_text()) for path in (run / "run.json", tmp_path / "run.json"))
    assert np.abs(read_predictions(tmp_path / "p.csv")[1] - read_predictions(run / "predictions.csv")[1]).max() < 1e-4
    assert same([result[name] for name in METRICS], [expected[name] for name in METRICS], 1e-4)
    assert result["confusion"] == expected["confusion"]


def test_lower_precision_is_computed_in_it(run, data, checkpoint, tmp_path):
    assert evaluate(data, checkpoint, "--precision", "bfloat16", "--predictions", tmp_path / "p.csv") == 0
    difference = np.abs(read_predictions(tmp_path / "p.csv")[1] - read_predictions(run / "predictions.csv")[1]).max()
    assert 1e-5 < difference < 0.2


def test_options_stand_over_the_training(run, data, checkpoint, tmp_path):
    options = ["--no-use-ema", "--img-size", 64, "--crop-pct", 1.0, "--mean", 0.5, "--std", 0.25]
    outputs = ["--json", tmp_path / "run.json", "--predictions", tmp_path / "p.csv"]
    assert evaluate(data, checkpoint, *options, *outputs) == 0
    rows, probs = read_predictions(tmp_path / "p.csv")
    model = timm.create_model("hifuse_tiny", num_classes=7, **NARROW)
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    args = dict(img_size=64, crop_pct=1.0, mean=[0.5], std=[0.25])
    assert np.abs(probs - expected_probabilities(model, data, [row["file"] for row in rows], args)).max() < 1e-4
    assert sum(row["predicted"] == "AKIEC" for row in rows) > 20  # as the trained weights have it


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_image_of_another_shape_is_fitted_as_asked_for(mode, data, checkpoint, tmp_path):
    options = [
        "--crop-mode",
        mode,
        "--crop-pct",
        1.0,
        "--predictions",
        tmp_path / "p.csv",
        "--json",
        tmp_path / "run.json",
    ]
    assert evaluate(data, checkpoint, *options) == 0
    rows, probs = read_predictions(tmp_path / "p.csv")
    content = torch.load(checkpoint, weights_only=False)
    model = timm.create_model("hifuse_tiny", num_classes=7, **NARROW)
    model.load_state_dict(content["state_dict_ema"])
    files, args = [row["file"] for row in rows], vars(content["args"]) | dict(crop_pct=1.0)
    assert np.abs(probs - expected_probabilities(model, data, files, args | dict(crop_mode=mode))).max() < 1e-4
    assert np.abs(probs - expected_probabilities(model, data, files, args)).max() > 1e-3  # the middle alone
    assert f"crop 1 ({mode})" in json.loads((tmp_path / "run.json").read_text())["origins"]["images"]


def test_any_model_of_timm_is_evaluated(data, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=7)
    torch.save(dict(state_dict=model.state_dict(), args=argparse.Namespace(num_classes=7)), tmp_path / "last.pth.tar")
    options = ["--predictions", tmp_path / "p.csv", "--json", tmp_path / "run.json"]
    assert evaluate(data, tmp_path / "last.pth.tar", *options, model="test_convnext") == 0
    rows, probs = read_predictions(tmp_path / "p.csv")
    assert np.abs(probs - expected_probabilities(model, data, [row["file"] for row in rows])).max() < 1e-4
    assert json.loads((tmp_path / "run.json").read_text())["paper"] is None


def test_classes_without_a_description_are_those_that_train_py_saw(run, data, checkpoint, tmp_path):
    """The class that the test set lacks must not shift those behind it."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / split).symlink_to(data / split)
    assert evaluate(tmp_path / "data", checkpoint, "--json", tmp_path / "run.json") == 0
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["confusion"] == json.loads((run / "run.json").read_text())["confusion"]
    assert (result["dataset"], result["paper"], result["title"]) == (None, None, "data")


def test_figures_go_with_the_weights_to_the_hub_and_back(data, full_width, tmp_path):
    """evaluate, publish with its JSON, and evaluate what was published: the same metrics."""
    args = argparse.Namespace(img_size=64, mean=[0.4, 0.4, 0.4])
    torch.save(dict(state_dict=full_width("hifuse_tiny").state_dict(), args=args), tmp_path / "last.pth.tar")
    assert evaluate(data, tmp_path / "last.pth.tar", "--json", tmp_path / "run.json") == 0
    publish = ["publish", "--model", "hifuse_tiny", "--checkpoint", str(tmp_path / "last.pth.tar")]
    publish += ["--dataset", "isic2018", "--metrics", str(tmp_path / "run.json"), "--dry-run", str(tmp_path / "out")]
    assert main(publish) == 0
    assert evaluate(data, None, "--json", tmp_path / "again.json", model=f"local-dir:{tmp_path / 'out'}") == 0
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "again.json"))
    for key in (*METRICS, "intervals", "per_class", "confusion", "paper", "architecture"):
        assert again[key] == first[key]

    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == {name: first[name] for name in METRICS}
    assert {r.dataset_split for r in card.data.eval_results} == {"test"}
    types = {r.metric_name: r.metric_type for r in card.data.eval_results}
    assert (types["auroc"], types["mcc"], types["brier"]) == ("roc_auc", "matthews_correlation", "brier_score")
    assert types["accuracy"] == "accuracy"
    lower, upper = first["intervals"]["f1"]
    assert f"| f1 | {first['f1']:.4f} | {lower:.4f} - {upper:.4f} | 0.7299 |" in card.text
    assert "On 24 images of the split test" in card.text
    assert str(tmp_path) not in card.content


def test_published_classes_keep_their_indices_whatever_the_dataset_says(run, data, tmp_path, narrow):
    """Weights that name their classes are read by these names."""
    model = narrow(num_classes=7)
    timm.models.save_for_hf(model, tmp_path / "saved", model_config=dict(label_names=LABELS[::-1]), model_args=NARROW)
    assert evaluate(data, None, "--json", tmp_path / "run.json", model=f"local-dir:{tmp_path / 'saved'}") == 0
    assert list(json.loads((tmp_path / "run.json").read_text())["per_class"]) == LABELS[::-1]


# What is refused


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data-dir", "none"], "data_dir none does not exist or is not a folder"),
        (["--split", "val"], "split 'val' is no folder in {data}, which has test, train"),
        (["--model", "hifuse_huge"], "model 'hifuse_huge' is not known to timm: near it are hifuse_base"),
        (["--checkpoint", "none.pth"], "checkpoint none.pth does not exist"),
        (["--model", "hifuse_tiny_dense"], "the checkpoint is of a HiFuse of dims (16, 32, 64, 128)"),
        (["--model", "test_convnext"], "model_kwargs that do not describe a network test_convnext: 'num_heads'"),
        (["--model-kwargs", "num_classes=5"], "model_kwargs has num_classes, which the weights say themselves"),
        (["--model-kwargs", "width=5"], "model hifuse_tiny cannot be built with"),
        (["--batch-size", "0"], "batch_size 0 is too small: expected 1 or more"),
        (["--workers", "-1"], "workers -1 is too small: expected 0 or more"),
        (["--resamples", "0"], "resamples 0 is too small: expected 1 or more"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--json", "none/run.json"], "none, to write run.json in, does not exist"),
        (["--predictions", "{data}"], "{data} is a folder, expected a file"),
        (["--plots", "{checkpoint}"], "{checkpoint} is a file, expected a folder"),
    ],
)
def test_bad_argument_is_one_error_before_any_work(options, words, data, checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hifuse_timm.evaluate.evaluation._predict", None)  # nothing comes to that
    paths = dict(data=data, checkpoint=checkpoint)
    assert evaluate(data, checkpoint, *[option.format(**paths) for option in options]) == 1
    captured = capsys.readouterr()
    assert words.format(**paths) in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_weights_must_be_named(data, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "hifuse_tiny", "--data-dir", str(data)])
    assert "one of the arguments --checkpoint --pretrained is required" in capsys.readouterr().err
    assert evaluate(data, None, "--use-ema") == 1
    assert "use_ema needs a checkpoint of train.py" in capsys.readouterr().err


def test_classes_that_do_not_fit_are_named(data, checkpoint, tmp_path, capsys):
    (tmp_path / "test").symlink_to(data / "test")
    write_description(tmp_path, LABELS[:5])
    assert evaluate(tmp_path, checkpoint) == 1
    expected = f"checkpoint {checkpoint} has 7 classes, {tmp_path / 'dataset.json'} has 5: AKIEC, BCC"
    assert expected in capsys.readouterr().err
    write_description(tmp_path, ["nevus", *LABELS[1:]])
    assert evaluate(tmp_path, checkpoint) == 1
    assert "has folders of other classes, AKIEC: expected those that are named by" in capsys.readouterr().err
    (tmp_path / "dataset.json").write_text("{}")
    assert evaluate(tmp_path, checkpoint) == 1
    assert "dataset.json is not as prepare writes it (its classes are None" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_named_and_nothing_is_written(data, checkpoint, tmp_path, capsys):
    for name in LABELS:
        (tmp_path / "test" / name).mkdir(parents=True)
    good = (data / "test" / "NV" / "5_0.png").read_bytes()
    for i in range(4):
        (tmp_path / "test" / "NV" / f"{i}.png").write_bytes(good if i != 2 else good[:60])
    write_description(tmp_path, LABELS)
    for workers in ("0", "1"):
        options = ["--workers", workers, "--batch-size", 2, "--json", tmp_path / "run.json"]
        assert evaluate(tmp_path, checkpoint, *options) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        expected = f"error: test/NV/2.png in {tmp_path} cannot be read as images: replace or remove them; "
        assert error.startswith(
            f"{expected}{tmp_path / 'test' / 'NV' / '2.png'} is damaged or of a kind that cannot be"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset.json", "test"]
    (tmp_path / "test" / "loose.png").write_bytes(good)
    assert evaluate(tmp_path, checkpoint) == 1
    assert "must hold its images in a folder for each class" in capsys.readouterr().err


@pytest.mark.parametrize(
    "image, words",
    [
        (Image.fromarray(np.full((9, 9), 3000, np.uint16)), "has grey values from 3000 to 3000, and train.py cuts off"),
        (Image.new("L", (1, 20_000)), "is too narrow: 1 x 20000 pixels"),
    ],
)
def test_images_that_training_saw_otherwise_or_that_fill_the_memory_are_named(
    image, words, checkpoint, tmp_path, capsys
):
    for name in LABELS:
        (tmp_path / "test" / name).mkdir(parents=True)
    Image.new("L", (9, 9)).save(tmp_path / "test" / "NV" / "1.png")
    image.save(tmp_path / "test" / "NV" / "2.png")
    write_description(tmp_path, LABELS)
    assert evaluate(tmp_path, checkpoint) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: test/NV/2.png in {tmp_path} cannot be read as images: ") and words in error


def test_outputs_that_are_no_numbers_are_refused(data, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict_ema"]["head.fc.bias"] = torch.full((7,), torch.nan)
    torch.save(content, tmp_path / "nan.pth.tar")
    assert evaluate(data, tmp_path / "nan.pth.tar") == 1
    assert "the network's outputs are not finite" in capsys.readouterr().err


def test_what_a_model_of_timm_cannot_do_is_refused(data, tmp_path, capsys):
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "vit.pth")
    assert evaluate(data, tmp_path / "vit.pth", "--fuse", model="test_vit") == 1
    assert "fuse: test_vit has nothing to fold for inference" in capsys.readouterr().err
    assert evaluate(data, tmp_path / "vit.pth", model="test_convnext") == 1
    assert "vit.pth does not fit test_convnext: Missing key" in capsys.readouterr().err


def test_missing_library_is_named_with_its_extra(data, checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    assert evaluate(data, checkpoint) == 1
    assert "pip install 'hifuse-timm[medical] @ git+https://" in capsys.readouterr().err


# Averages


@pytest.fixture
def runs(run, tmp_path):
    """Two runs that differ in metrics."""
    first = json.loads((run / "run.json").read_text())
    second = first | dict(accuracy=first["accuracy"] + 0.1, f1=first["f1"] + 0.02, auroc=None)
    paths = []
    for name, content in (("fold1.json", first), ("fold2.json", second)):
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps(content))
    return paths, first, second


def test_average_is_the_mean_of_the_runs_with_its_spread(runs, tmp_path, capsys):
    paths, first, second = runs
    assert main(["average", *map(str, paths), "--json", str(tmp_path / "mean.json")]) == 0
    result = json.loads((tmp_path / "mean.json").read_text())
    numbers = {k: v for k, v in result.items() if isinstance(v, (int, float))}
    assert list(numbers) == [name for name in METRICS if name != "auroc"]
    assert same([numbers["accuracy"], numbers["f1"]], [first["accuracy"] + 0.05, first["f1"] + 0.01])
    assert numbers["recall"] == first["recall"]
    spread = result["spread"]["accuracy"]
    assert same(list(spread.values()), [np.std([0, 0.1], ddof=1), first["accuracy"], second["accuracy"]])
    assert result["spread"]["auroc"] is None
    assert result["counts"] == dict(runs=2, images=48, classes=7) and len(result["runs"]) == 2
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy")).split()
    difference = 100 * result["accuracy"] - 82.99
    assert line == [
        "accuracy",
        *(f"{100 * value:.2f}" for value in (result["accuracy"], *spread.values())),
        "82.99",
        f"{difference:+.2f}",
    ]


def test_average_goes_into_the_card(runs, full_width, tmp_path, capsys):
    paths, _, _ = runs
    assert main(["average", *map(str, paths), "--json", str(tmp_path / "mean.json")]) == 0
    mean = json.loads((tmp_path / "mean.json").read_text())
    torch.save(full_width("hifuse_tiny").state_dict(), tmp_path / "weights.pth")
    publish = ["publish", "--model", "hifuse_tiny", "--checkpoint", str(tmp_path / "weights.pth"), "--metrics"]
    publish += [str(tmp_path / "mean.json"), "--dry-run", str(tmp_path / "out"), "--dataset"]
    assert main([*publish, "isic2018"]) == 0
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert "Means of 2 runs on 48 images in all" in text
    assert f"| accuracy | {mean['accuracy']:.4f} | {mean['spread']['accuracy']['std']:.4f} | 0.8299 |" in text
    capsys.readouterr()
    assert main([*publish, "covid19ct"]) == 1  # not the metrics of these weights
    expected = "are of hifuse_tiny on isic2018, expected those of hifuse_tiny on covid19ct"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(architecture="hifuse_base"), "fold2.json has the architecture hifuse_base, "),
        (dict(dataset="kvasir"), "fold2.json has the dataset kvasir, "),
        ("class", "fold2.json has the classes a, "),
        (dict(kind=None), "fold2.json is no evaluation: expected a file that evaluate --json wrote"),
    ],
)
def test_average_refuses_runs_that_do_not_go_together(change, words, runs, capsys):
    paths, _, second = runs
    if change == "class":
        change = dict(per_class={"a": second["per_class"][MISSING]})
    paths[1].write_text(json.dumps(second | change))
    assert main(["average", *map(str, paths)]) == 1
    assert words in capsys.readouterr().err


def test_average_needs_two_different_runs_that_can_be_read(runs, tmp_path, capsys):
    (first, _), _, _ = runs
    assert main(["average", str(first)]) == 1
    assert "runs: 1 given, expected two or more" in capsys.readouterr().err
    assert main(["average", str(first), str(first)]) == 1
    assert "give each run once" in capsys.readouterr().err
    (tmp_path / "half.json").write_text('{"accuracy": 0.')
    assert main(["average", str(first), str(tmp_path / "half.json")]) == 1
    assert "half.json is no JSON" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folds(data, checkpoint, tmp_path_factory):
    """Two evaluations, each of half of the test images, the second with groups of two."""
    root = tmp_path_factory.mktemp("folds")
    for fold, numbers in (("fold1", "01"), ("fold2", "23")):
        (root / fold).mkdir()
        for path in (data / "test").rglob("*.png"):
            if path.stem[-1] in numbers:
                copy = root / fold / path.relative_to(data)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(path)
        write_description(root / fold, LABELS)
        if fold == "fold2":
            files = [str(path.relative_to(root / fold)) for path in (root / fold).rglob("*.png")]
            rows = "".join(f"{file},{file.split('/')[1]}\n" for file in files)
            (root / fold / "splits.csv").write_text(f"file,group\n{rows}")
        outputs = ["--json", root / f"{fold}.json", "--predictions", root / f"{fold}.csv"]
        assert evaluate(root / fold, checkpoint, *outputs) == 0
    return root


def average_folds(root, *options, runs=("fold1", "fold2"), predictions=("fold1", "fold2")) -> int:
    files = [*(str(root / f"{name}.json") for name in runs), "--predictions"]
    return main(["average", *files, *(str(root / f"{name}.csv") for name in predictions), *map(str, options)])


def test_predictions_of_folds_are_measured_together(folds, tmp_path, full_width, capsys):
    assert average_folds(folds, "--json", tmp_path / "mean.json", "--resamples", "50") == 0
    mean = json.loads((tmp_path / "mean.json").read_text())
    tables = [read_table(folds / f"{name}.csv") for name in ("fold1", "fold2")]
    probs, targets = (torch.cat([getattr(table, name) for table in tables]) for name in ("probs", "targets"))
    expected, _ = compute_metrics(probs, targets)
    intervals, _ = bootstrap_intervals(probs, targets, [*tables[0].files, *tables[1].groups], resamples=50)
    pooled = mean["pooled"]
    assert (pooled["counts"]["images"], pooled["intervals"]["groups"]) == (24, 12 + 6)
    for name in METRICS:
        assert same(pooled[name], expected[name], 1e-5)
        assert same(pooled["intervals"][name], intervals[name], 1e-5)
    assert mean["accuracy"] == pytest.approx(pooled["accuracy"], abs=1e-5)  # of folds of one size
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("F1")).split()
    assert line[5] == f"{100 * pooled['f1']:.2f}" and line[6] == f"{100 * pooled['intervals']['f1'][0]:.2f}"

    torch.save(full_width("hifuse_tiny").state_dict(), tmp_path / "weights.pth")
    publish = ["publish", "--model", "hifuse_tiny", "--checkpoint", str(tmp_path / "weights.pth"), "--metrics"]
    publish += [str(tmp_path / "mean.json"), "--dry-run", str(tmp_path / "out"), "--dataset", "isic2018"]
    assert main(publish) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    lower, upper = pooled["intervals"]["f1"]
    shown = f"{mean['f1']:.4f} | {mean['spread']['f1']['std']:.4f} | {pooled['f1']:.4f} | {lower:.4f} - {upper:.4f}"
    assert f"| f1 | {shown} | 0.7299 |" in card and "95% interval over 18 groups" in card


@pytest.mark.parametrize(
    "names, words",
    [
        (["fold1"], "predictions: 1 given for 2 runs, expected one for each"),
        (["fold2", "fold1"], "fold2.csv are not those of run {folds}/fold1.json: expected the same true classes"),
        (["fold1", "fold1"], "fold1.csv have 12 images that {folds}/fold1.csv has, "),
        (["fold1", "none"], "none.csv"),
    ],
)
def test_predictions_that_make_no_pool_are_refused(names, words, folds, capsys):
    runs = ("fold1", "again") if names == ["fold1", "fold1"] else ("fold1", "fold2")
    run = json.loads((folds / "fold1.json").read_text())
    (folds / "again.json").write_text(json.dumps(run | dict(conditions={})))
    assert average_folds(folds, runs=runs, predictions=names) == 1
    captured = capsys.readouterr()
    assert words.format(folds=folds) in captured.err and captured.err.count("\n") == 1 and captured.out == ""


# Groups


def write_splits(data, folder, patient=lambda name: name.split("_")[-1], **columns):
    """A copy of the dataset by links, with a splits.csv; of the test images those of one number are of one patient."""
    for split in ("train", "test", "dataset.json"):
        (folder / split).symlink_to(data / split)
    files = sorted(str(path.relative_to(data)) for path in (data / "test").rglob("*.png"))
    rows = [[file, patient(file), *(of(file) for of in columns.values())] for file in files]
    with (folder / "splits.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["file", "group", *columns], *rows])
    return folder


def test_groups_of_splits_csv_are_resampled_whole_and_said(run, data, checkpoint, tmp_path, capsys, caplog):
    folder = write_splits(data, tmp_path)
    outputs = ["--json", tmp_path / "run.json", "--predictions", tmp_path / "p.csv"]
    assert evaluate(folder, checkpoint, *outputs) == 0
    printed = capsys.readouterr().out
    result, over_images = (json.loads(path.read_text()) for path in (tmp_path / "run.json", run / "run.json"))
    intervals = result["intervals"]
    assert (intervals["unit"], intervals["groups"]) == ("groups", 4)
    assert intervals["method"] == "percentile bootstrap over groups"
    assert all(intervals["over_images"][name] == over_images["intervals"][name] for name in METRICS)
    assert all(result[name] == over_images[name] for name in METRICS)

    predictions = read_table(tmp_path / "p.csv")
    assert [file.split("_")[-1] for file in predictions.files] == predictions.groups
    expected, _ = bootstrap_intervals(predictions.probs, predictions.targets, predictions.groups, resamples=50)
    assert same(expected["accuracy"], intervals["accuracy"]) and intervals["accuracy"] != over_images["intervals"]
    lower, upper = intervals["brier"]
    below, above = intervals["over_images"]["brier"]
    line = next(line for line in printed.splitlines() if line.startswith("Brier score"))
    assert line.split()[-1] == f"{(upper - lower) / (above - below):.2f}"
    assert "over 4 groups" in printed and "4 groups are few" in caplog.text


def test_images_are_resampled_where_that_is_asked_for_or_no_group_has_several(run, data, checkpoint, tmp_path, caplog):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    write_splits(data, alone, patient=lambda name: name)
    write_splits(data, together)
    for folder, options in ((alone, []), (together, ["--resample", "images"])):
        outputs = ["--json", tmp_path / "run.json", "--predictions", tmp_path / "p.csv"]
        assert evaluate(folder, checkpoint, *outputs, *options) == 0
        assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()
        found, expected = (json.loads(path.read_text()) for path in (tmp_path / "run.json", run / "run.json"))
        assert found["intervals"] == expected["intervals"] and "few" not in caplog.text


def test_another_column_may_name_the_groups(data, checkpoint, tmp_path):
    folder = write_splits(data, tmp_path, patient=lambda name: name, eye=lambda name: name.split("/")[1])
    assert evaluate(folder, checkpoint, "--group-column", "eye", "--json", tmp_path / "run.json") == 0
    assert json.loads((tmp_path / "run.json").read_text())["intervals"]["groups"] == 6


@pytest.mark.parametrize(
    "options, lines, words",
    [
        (["--group-column", "eye"], None, "group_column 'eye' is no column of {csv}, which has file, group"),
        (["--group-column", "group", "--resample", "images"], None, "group_column 'group' names groups, and resample"),
        (["--resample", "groups"], ["file"], "resample groups: {csv} names no groups of several images; "),
        ([], ["file,group", "test/NV/5_0.png,1"], "{csv} names no group for 23 of the images, "),
        ([], ["file,group", "a.png,1,2"], "{csv} is not as prepare writes it (its row 1 has more or fewer cells"),
        ([], ["file,group", "a.png,1", "a.png,1"], "(it has 'a.png' twice)"),
        ([], ["name,group", "a.png,1"], "(its columns are ['name', 'group'], expected different ones with file"),
    ],
)
def test_images_without_a_group_are_refused(options, lines, words, data, checkpoint, tmp_path, capsys):
    folder = write_splits(data, tmp_path)
    if lines is not None:
        (folder / "splits.csv").write_text("".join(f"{line}\n" for line in lines))
    assert evaluate(folder, checkpoint, *options) == 1
    error = capsys.readouterr().err
    assert words.format(csv=folder / "splits.csv") in error and error.count("\n") == 1


# Subgroups


@pytest.fixture(scope="module")
def by_subgroups(data, checkpoint, tmp_path_factory):
    """What the command wrote of subgroups, and the predictions."""
    folder = tmp_path_factory.mktemp("subgroups")
    ages = {name: age for name, age in zip(LABELS, (30, 40, "", 59.5, 60, 61, 90), strict=True)}
    columns = dict(
        site=lambda file: "north" if "_0" in file or "_1" in file else "south",
        age=lambda file: ages[file.split("/")[1]],
    )
    write_splits(data, folder, **columns)
    options = ["--by", "site", "age:40,60", "--json", folder / "run.json", "--predictions", folder / "p.csv"]
    assert evaluate(folder, checkpoint, *options) == 0
    return folder, json.loads((folder / "run.json").read_text()), read_table(folder / "p.csv")


def test_subgroups_are_measured_each_for_itself(by_subgroups, data, checkpoint, capsys):
    folder, result, predictions = by_subgroups
    assert list(result["subgroups"]["site"]) == ["north", "south"]
    for name, numbers in (("north", ("0", "1")), ("south", ("2", "3"))):
        images = [i for i, file in enumerate(predictions.files) if file[-5] in numbers]
        own = predictions.probs[images], predictions.targets[images]
        expected, _ = compute_metrics(*own)
        intervals, _ = bootstrap_intervals(*own, [predictions.groups[i] for i in images], resamples=50)
        subgroup = result["subgroups"]["site"][name]
        assert (subgroup["images"], subgroup["groups"], len(images)) == (12, 2, 12)
        for metric in ("accuracy", "balanced_accuracy", "auroc"):
            assert same(subgroup[metric], expected[metric], 1e-5)
            assert same(subgroup["intervals"][metric], intervals[metric], 1e-5)
        assert subgroup["f1"] is None and subgroup["intervals"]["f1"] is None  # a class does not occur

    assert evaluate(folder, checkpoint, "--by", "site") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("north"))
    north = result["subgroups"]["site"]["north"]
    lower, upper = north["intervals"]["accuracy"]
    shown = [f"{100 * north['accuracy']:.2f}", f"({100 * lower:.2f}", "-", f"{100 * upper:.2f})"]
    assert line.split()[1:7] == ["12", "2", *shown] and "n/a" in line


def test_numbers_are_cut_into_bands_and_small_ones_are_counted(by_subgroups):
    _, result, _ = by_subgroups
    bands = result["subgroups"]["age:40,60"]
    of_class = {name: of["images"] for name, of in result["per_class"].items()}
    counts = [
        of_class[LABELS[0]],
        of_class[LABELS[1]] + of_class[LABELS[3]],
        sum(of_class[LABELS[k]] for k in (4, 5, 6)),
    ]
    names = ["under 40", "40 to under 60", "60 and over", "unknown"]
    assert {name: band["images"] for name, band in bands.items()} == dict(
        zip(names, [*counts, of_class[LABELS[2]]], strict=True)
    )
    for band in bands.values():
        metrics = [band[name] for name in ("accuracy", "balanced_accuracy", "auroc")]
        assert (None in metrics) == (band["images"] < 10)


@pytest.mark.parametrize(
    "by, words",
    [
        ("eye", "by 'eye' is no column of {csv}, which has file, group, age, many"),
        ("eye:40", "by 'eye:40' is no column of"),
        ("age:60,40", "by 'age:60,40' has edges that do not rise"),
        ("age:x", "by 'age:x' cuts numbers into bands, and 'x' is none"),
        ("age:40", "by 'age:40' cuts numbers into bands, and 'old' is none"),
        ("many", "by 'many' has 60 values, expected 50 or fewer: bands of numbers are written as many:40,60,80"),
    ],
)
def test_columns_that_make_no_subgroups_are_refused(by, words, tmp_path):
    files = [f"test/{i}.png" for i in range(60)]
    rows = "".join(f"{file},{i},old,{i}\n" for i, file in enumerate(files))
    (tmp_path / "splits.csv").write_text(f"file,group,age,many\n{rows}")
    with pytest.raises(ValueError) as error:
        Columns(tmp_path, files).find_subgroups(by)
    assert words.format(csv=tmp_path / "splits.csv") in str(error.value)
