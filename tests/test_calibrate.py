"""`calibrate` on what evaluate wrote of val, and `--calibration` wherever a network is used."""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from huggingface_hub import ModelCard
from PIL import Image
from test_calibration_fits import enumerate_thresholds, simulate
from test_runs import change_fields

from hifuse_timm.__main__ import main
from hifuse_timm.calibrate.thresholds import Aim
from hifuse_timm.calibration import read_calibration
from hifuse_timm.metrics import compute_metrics
from hifuse_timm.model_card import _describe_calibration
from hifuse_timm.operating_points import format_calibration
from hifuse_timm.predictions import Predictions, read_predictions, write_predictions

CLASSES = ["polyp", "Übergang", "normal, or so"]
REPO_ID = "clinic/hifuse_tiny.own"


def calibrate(predictions, out, *options) -> int:
    command = ["calibrate", "--predictions", predictions, "--out", out, "--resamples", 50, *options]
    return main([str(word) for word in command])


def fit(predictions, tmp_path, *options) -> dict:
    assert calibrate(predictions, tmp_path / "fitted.json", *options) == 0
    return json.loads((tmp_path / "fitted.json").read_text())


def write_table(
    path, images=300, repeated=1, files="val/{name}/{i}.png", names=CLASSES, change=None, **options
) -> Path:
    """Write simulated predictions, each image several times in a group of its own where it is repeated."""
    probs, targets = simulate(300, len(names), scale=1.7)
    if change is not None:
        change(probs, targets)
    files = [files.format(name=names[k], i=f"{i}-{j}") for i, k in enumerate(targets.tolist()) for j in range(repeated)]
    groups = [f"patient {i}" for i in range(300) for _ in range(repeated)] if repeated > 1 else None
    table = Predictions(files, names, probs.repeat_interleave(repeated, 0), targets.repeat_interleave(repeated), groups)
    write_predictions(path, table)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "val.csv")


# What is fitted


def test_file_says_what_plain_counting_on_the_calibrated_table_finds(table, tmp_path, capsys):
    options = ["--sensitivity", "polyp=0.9", "--specificity", "Übergang=0.8", "--youden", CLASSES[2]]
    found = fit(table, tmp_path, *options, "--undecided-share", 0.2)
    read = read_predictions(table)
    logits = read.probs.log() / found["temperature"]
    calibrated = logits.softmax(1).numpy()
    assert found["temperature"] == pytest.approx(1.7, rel=0.3)
    assert found["temperature_interval"][0] < found["temperature"] < found["temperature_interval"][1]
    once = np.ones(300)
    aims = [Aim("sensitivity", 0.9), Aim("specificity", 0.8), Aim("youden")]
    assert list(found["thresholds"]) == CLASSES
    for k, (name, aim) in enumerate(zip(CLASSES, aims, strict=True)):
        own, threshold = (read.targets == k).numpy(), found["thresholds"][name]
        assert threshold["threshold"] == pytest.approx(enumerate_thresholds(calibrated[:, k], own, once, aim))
        lower, upper = threshold["threshold_interval"]
        assert lower <= threshold["threshold"] <= upper and lower < upper
        rates, positive = found["measured"]["thresholds"][name], calibrated[:, k] >= threshold["threshold"]
        expected = dict(sensitivity=positive[own].mean(), specificity=1 - positive[~own].mean())
        for rate, value in expected.items():
            assert rates[rate] == pytest.approx(value, abs=1e-6)
            assert rates["intervals"][rate][0] <= value <= rates["intervals"][rate][1]
    assert found["measured"]["thresholds"]["polyp"]["sensitivity"] >= 0.9
    assert found["measured"]["thresholds"]["Übergang"]["specificity"] >= 0.8
    decided = calibrated.max(1) >= found["undecided_below"]
    right = calibrated.argmax(1) == read.targets.numpy()
    assert found["measured"]["undecided"]["share"] == pytest.approx(1 - decided.mean(), abs=1e-6) == 0.2
    assert found["measured"]["undecided"]["accuracy"] == pytest.approx(right[decided].mean(), abs=1e-6)
    for when, probs in (("before", read.probs), ("after", torch.tensor(calibrated))):
        metrics, _ = compute_metrics(probs, read.targets)
        loss = -np.log(probs.numpy()[np.arange(300), read.targets.numpy()]).mean()
        expected = dict(nll=pytest.approx(loss, abs=1e-6), ece=metrics["ece"], brier=metrics["brier"])
        assert found["measured"][when] == expected
    assert found["measured"]["after"]["nll"] < found["measured"]["before"]["nll"]
    printed = capsys.readouterr().out
    assert f"temperature {found['temperature']:.3f} (95% interval " in printed and "Youden's index" in printed


def test_same_seed_gives_the_same_bytes_and_another_one_other_intervals(table, tmp_path):
    first, again, other = (tmp_path / f"{i}.json" for i in range(3))
    assert [calibrate(table, path, "--seed", seed) for path, seed in ((first, 0), (again, 0), (other, 1))] == [0] * 3
    assert first.read_bytes() == again.read_bytes()
    first, other = (json.loads(path.read_text()) for path in (first, other))
    assert first["temperature"] == other["temperature"]
    assert first["temperature_interval"] != other["temperature_interval"]


def test_images_of_one_patient_count_as_one(tmp_path):
    """Each image five times, as of a patient: the intervals are those of the images once."""
    once = fit(write_table(tmp_path / "once.csv"), tmp_path)
    grouped = fit(write_table(tmp_path / "grouped.csv", repeated=5), tmp_path)
    assert grouped["counts"] == dict(images=1500, groups=300) and grouped["intervals"]["unit"] == "groups"
    assert once["counts"] == dict(images=300, groups=None) and once["intervals"]["unit"] == "images"
    assert grouped["temperature_interval"] == pytest.approx(once["temperature_interval"], rel=1e-5)
    assert grouped["measured"]["thresholds"] == once["measured"]["thresholds"]
    for name in CLASSES:
        theirs = once["thresholds"][name]["threshold_interval"]
        assert grouped["thresholds"][name]["threshold_interval"] == pytest.approx(theirs, abs=2e-6)


def test_every_class_has_the_threshold_of_youden_unless_some_are_asked_for(table, tmp_path):
    found = fit(table, tmp_path)
    assert {name: (of["aim"], of["wanted"]) for name, of in found["thresholds"].items()} == dict.fromkeys(
        CLASSES, ("youden", None)
    )
    assert found["undecided_below"] is found["measured"]["undecided"] is None
    assert list(fit(table, tmp_path, "--sensitivity", "polyp=1")["thresholds"]) == ["polyp"]
    assert fit(table, tmp_path, "--undecided-below", 0.6)["undecided_below"] == 0.6


def test_temperature_stands_alone_without_thresholds(table, tmp_path):
    whole, found = fit(table, tmp_path), fit(table, tmp_path, "--no-thresholds")
    assert found["temperature"] == whole["temperature"] and found["temperature_interval"] is not None
    assert found["thresholds"] == found["measured"]["thresholds"] == {} != whole["thresholds"]
    assert read_calibration(tmp_path / "fitted.json").name_columns() == []


def test_classes_in_another_order_of_columns_are_the_same(table, tmp_path):
    read = read_predictions(table)
    order = [2, 0, 1]
    targets = torch.tensor([order.index(k) for k in read.targets.tolist()])
    write_predictions(
        tmp_path / "other.csv", Predictions(read.files, [CLASSES[k] for k in order], read.probs[:, order], targets)
    )
    first, other = (fit(path, tmp_path) for path in (table, tmp_path / "other.csv"))
    assert other["temperature"] == pytest.approx(first["temperature"], rel=1e-6)
    assert {name: of["threshold"] for name, of in other["thresholds"].items()} == pytest.approx(
        {name: of["threshold"] for name, of in first["thresholds"].items()}
    )


def all_right(probs, targets):
    targets[:] = probs.argmax(1)


def round_off(probs, targets):
    probs[:] = (probs + 0.001).round(decimals=2) * (probs > 0.01)
    probs /= probs.sum(1, keepdim=True)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(), "no run is given (--run)"),
        (dict(files="{name}/{i}.png"), "it is not known of which split they are"),
        (dict(files="train/{name}/{i}.png"), "they are of the split train"),
        (dict(change=all_right), "as where all images are classified right: the temperature stays 1"),
        (dict(change=round_off), "have probabilities of exactly 0 for"),
    ],
)
def test_what_is_doubtful_is_said(options, words, tmp_path, caplog):
    found = fit(write_table(tmp_path / "val.csv", **options), tmp_path)
    assert words in caplog.text
    if "stays 1" in words:
        assert found["temperature"] == 1 and found["temperature_interval"] is None
        assert found["measured"]["before"] == found["measured"]["after"]
    else:
        assert 1 < found["temperature"] < 3


def test_network_that_says_nothing_is_refused(tmp_path, capsys):
    def shuffle(probs, targets):
        probs[:] = 1 / 3

    assert calibrate(write_table(tmp_path / "val.csv", change=shuffle), tmp_path / "out.json") == 1
    assert "the probabilities say nothing of the true classes" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--predictions", "none.csv"], "none.csv"),
        (["--predictions", "{test}"], "{test} are of the split test, on which nothing may be chosen"),
        (["--predictions", "{one_class}"], "{one_class} have no images of Übergang, normal, or so: expected some of"),
        (["--predictions", "{no_truth}"], "{no_truth} have no column class, of the true class of each image"),
        (["--sensitivity", "flu=0.9"], "sensitivity: flu is no class, expected one of polyp, Übergang"),
        (["--youden", "polyp", "--sensitivity", "polyp=0.9"], "youden: polyp has a threshold already"),
        (["--youden", "polyp", "--no-thresholds"], "no_thresholds given, and what a threshold is chosen by too"),
        (["--sensitivity", "polyp=95"], "sensitivity 95 of polyp is not over 0 and up to 1"),
        (["--specificity", "polyp=nan"], "specificity nan of polyp is not over 0 and up to 1"),
        (["--specificity", "polyp=1"], "specificity 1 of polyp is not reached"),
        (["--undecided-below", "1.5"], "undecided_below 1.5 is not over 0 and up to 1"),
        (["--undecided-share", "1"], "undecided_share 1 is not from 0 to under 1"),
        (["--predictions", "{undecided}", "--undecided-below", "0.5"], "a class is called undecided"),
        (["--resamples", "0"], "resamples 0 is too small: expected 1 or more"),
        (["--run", "{table}"], "run {table} is no JSON"),
        (["--out", "none/out.json"], "none, to write out.json in, does not exist"),
    ],
)
def test_bad_argument_is_one_error_and_nothing_is_written(options, words, table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def only_first(probs, targets):
        targets[:] = 0

    def fool(probs, targets):
        probs[targets.tolist().index(1)] = torch.tensor([1, 0, 0])

    places = dict(
        table=table,
        test=write_table(tmp_path / "test.csv", files="/data/test/{name}/{i}.png"),
        one_class=write_table(tmp_path / "one.csv", change=only_first),
        no_truth=tmp_path / "no_truth.csv",
        undecided=write_table(tmp_path / "undecided.csv", names=["undecided", "b", "c"]),
    )
    write_predictions(places["no_truth"], Predictions(["a"], CLASSES, torch.tensor([[0.2, 0.3, 0.5]])))
    if "polyp=1" in options:
        table = write_table(tmp_path / "fooled.csv", change=fool)
    before = set(tmp_path.iterdir())
    assert calibrate(table, tmp_path / "out.json", *[option.format(**places) for option in options]) == 1
    captured = capsys.readouterr()
    assert words.format(**places) in captured.err and captured.out == ""
    assert captured.err.count("error: ") == 1 and set(tmp_path.iterdir()) == before


def test_share_that_is_no_number_is_named(table, tmp_path, capsys):
    with pytest.raises(SystemExit):
        calibrate(table, tmp_path / "out.json", "--sensitivity", "polyp")
    assert "'polyp' is not like CLASS=0.95" in capsys.readouterr().err


# The file


def test_any_change_of_the_file_is_read_to_the_end_or_names_file_and_field(table, tmp_path):
    whole = fit(table, tmp_path, "--undecided-below", 0.5)
    path = tmp_path / "changed.json"
    refused = accepted = 0
    for _, content in change_fields(whole):
        path.write_text(json.dumps(content))
        try:
            calibration = read_calibration(path)
            format_calibration(calibration.content)
            _describe_calibration(REPO_ID, calibration.content, {})
            calibration.write_cells(calibration.apply(torch.full((1, len(calibration.classes)), 0.1))[0])
            accepted += 1
        except ValueError as e:
            message = str(e)
            assert str(path) in message and "\n" not in message and len(message) < 500, message
            refused += 1
    assert refused > 600 and accepted > 50  # of what nobody reads, as versions, everything is fine


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(temperature=0), "calibration {path}: temperature is 0, expected a number from 0.01 to 100"),
        (dict(classes=["a", "a"]), 'classes is ["a", "a"], expected a list of two names or more, none of them twice'),
        (dict(thresholds=dict(flu={})), "has a threshold for flu, expected some of its classes"),
        (dict(kind="evaluation"), "calibration {path} is no calibration: expected a file that calibrate wrote"),
    ],
)
def test_field_that_is_wrong_is_named_with_what_would_be_right(change, words, table, tmp_path):
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(fit(table, tmp_path) | change))
    with pytest.raises(ValueError) as error:
        read_calibration(path)
    assert words.format(path=path) in str(error.value)


# Where a network is used


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", num_classes=3, **NARROW)
    state_dict = model.state_dict() | {"head.fc.weight": 20 * model.head.fc.weight.detach()}
    path = tmp_path_factory.mktemp("training") / "last.pth.tar"
    args = argparse.Namespace(model_kwargs=NARROW, img_size=32)
    torch.save(dict(state_dict=state_dict, args=args), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, checkpoint):
    """A dataset whose classes are what the network takes its images for, but for one of five."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "all").mkdir()
    for i in range(60):
        pixels = (rng.random((36, 36, 1)) * rng.integers(0, 256, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "all" / f"{i:02}.png")
    command = ["predict", root / "all", *network(checkpoint), "--classes", *CLASSES, "--csv", root / "all.csv"]
    assert main([*map(str, command)]) == 0
    with (root / "all.csv").open(newline="", encoding="utf-8") as f:
        for i, row in enumerate(csv.DictReader(f)):
            split = ("val", "test")[i % 2]
            label = rng.choice(CLASSES) if rng.random() < 0.2 else row["predicted"]
            (root / "data" / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(row["path"], root / "data" / split / label)
    (root / "data/dataset.json").write_text(json.dumps(dict(name="own", title="Own", classes=CLASSES)))
    return root / "data"


def network(checkpoint) -> list:
    return ["--model", "hifuse_tiny", "--checkpoint", checkpoint, "--workers", 0, "--device", "cpu"]


def evaluate(data, checkpoint, folder, *options, split="test") -> int:
    command = ["evaluate", *network(checkpoint), "--data-dir", data, "--split", split, "--resamples", 50]
    command += ["--json", folder / "run.json", "--predictions", folder / "predictions.csv", *options]
    return main([*map(str, command)])


@pytest.fixture(scope="module")
def val(tmp_path_factory, data, checkpoint):
    """What evaluate wrote of val."""
    folder = tmp_path_factory.mktemp("val")
    assert evaluate(data, checkpoint, folder, split="val") == 0
    return folder


@pytest.fixture(scope="module")
def calibration(val):
    """What calibrate made of it."""
    options = ["--run", val / "run.json", "--sensitivity", "polyp=0.9", "--undecided-share", 0.25]
    assert calibrate(val / "predictions.csv", val / "calibration.json", *options) == 0
    return val / "calibration.json"


def read(path) -> tuple[list[dict], np.ndarray]:
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return rows, np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])


def predict(data, checkpoint, out, *options, split="test") -> int:
    command = ["predict", data / split, *network(checkpoint), "--data-dir", data, "--csv", out, *options]
    return main([*map(str, command)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data, checkpoint, calibration):
    """What evaluate wrote of test, plain and calibrated."""
    folders = [tmp_path_factory.mktemp(name) for name in ("plain", "calibrated")]
    assert evaluate(data, checkpoint, folders[0]) == 0
    assert evaluate(data, checkpoint, folders[1], "--calibration", calibration) == 0
    return folders


def test_calibration_says_of_which_network_and_images_it_is(val, calibration):
    found = json.loads(calibration.read_text())
    assert {key: found["fitted_on"][key] for key in ("model", "checkpoint", "dataset", "split")} == dict(
        model="hifuse_tiny", checkpoint="last.pth.tar", dataset="own", split="val"
    )
    assert found["fitted_on"]["weights"] == json.loads((val / "run.json").read_text())["conditions"]["weights"]
    assert found["temperature"] > 1.5  # the head's weights are 20 times as large as they were


def test_evaluate_measures_calibrated_probabilities_and_the_decisions_by_them(runs, calibration):
    plain, calibrated = (json.loads((folder / "run.json").read_text()) for folder in runs)
    rows, probs = read(runs[1] / "predictions.csv")
    _, raw = read(runs[0] / "predictions.csv")
    file = json.loads(calibration.read_text())
    expected = raw ** (1 / file["temperature"])
    assert np.allclose(probs, expected / expected.sum(1, keepdims=True), rtol=1e-6, atol=0)
    assert calibrated["accuracy"] == plain["accuracy"] and calibrated["confusion"] == plain["confusion"]
    measured = calibrated["calibration"]["measured"]
    for when, run in (("before", plain), ("after", calibrated)):
        assert {key: measured[when][key] for key in ("ece", "brier")} == {key: run[key] for key in ("ece", "brier")}
    targets = np.array([CLASSES.index(row["class"]) for row in rows])
    assert measured["after"]["nll"] == pytest.approx(-np.log(probs[np.arange(len(rows)), targets]).mean(), abs=1e-5)
    own, positive = targets == 0, probs[:, 0] >= file["thresholds"]["polyp"]["threshold"]
    rates = measured["thresholds"]["polyp"]
    assert rates["sensitivity"] == pytest.approx(positive[own].mean(), abs=1e-6)
    assert rates["specificity"] == pytest.approx(1 - positive[~own].mean(), abs=1e-6)
    assert rates["intervals"]["specificity"][0] < rates["specificity"] < rates["intervals"]["specificity"][1]
    decided = probs.max(1) >= file["undecided_below"]
    assert 0 < decided.mean() < 1
    assert measured["undecided"]["share"] == pytest.approx(1 - decided.mean(), abs=1e-6)
    right = (probs.argmax(1) == targets)[decided].mean()
    assert measured["undecided"]["accuracy"] == pytest.approx(right, abs=1e-6)


def test_evaluate_prints_what_the_calibration_does(data, checkpoint, calibration, tmp_path, capsys):
    assert evaluate(data, checkpoint, tmp_path, "--calibration", calibration, "--fuse") == 0
    printed = capsys.readouterr().out
    assert f"probabilities: calibrated by {calibration}\n" in printed
    assert "negative log-likelihood" in printed and "undecided under " in printed
    line = next(line for line in printed.splitlines() if line.startswith("polyp") and "sensitivity 90" in line)
    measured = json.loads((tmp_path / "run.json").read_text())["calibration"]["measured"]["thresholds"]["polyp"]
    assert f"{100 * measured['sensitivity']:.2f}" in line.split()


def test_predict_gives_an_image_the_probabilities_of_evaluate_and_the_decisions(
    data, checkpoint, calibration, runs, tmp_path
):
    assert predict(data, checkpoint, tmp_path / "p.csv", "--calibration", calibration) == 0
    rows, probs = read(tmp_path / "p.csv")
    theirs = {row["file"]: row for row in read(runs[1] / "predictions.csv")[0]}
    file = json.loads(calibration.read_text())
    columns = ["path", "predicted", *(f"p_{name}" for name in CLASSES), "positive_polyp", "decision", "error"]
    assert list(rows[0]) == columns
    for row, image in zip(rows, probs, strict=True):
        other = theirs[str(Path(row["path"]).relative_to(data))]
        assert {key: row[key] for key in columns[1:5]} == {key: other[key] for key in columns[1:5]}
        assert row["positive_polyp"] == str(int(image[0] >= file["thresholds"]["polyp"]["threshold"]))
        undecided = image.max() < file["undecided_below"]
        assert row["decision"] == ("undecided" if undecided else row["predicted"])
    for column in ("positive_polyp", "decision"):
        assert len({row[column] for row in rows}) > 1
    assert read_predictions(tmp_path / "p.csv").classes == CLASSES


def test_image_that_cannot_be_read_has_no_decision(data, checkpoint, calibration, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    command = ["predict", tmp_path, *network(checkpoint), "--data-dir", data, "--csv", tmp_path / "p.csv"]
    assert main([*map(str, [*command, "--calibration", calibration])]) == 1
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as f:
        (row,) = csv.DictReader(f)
    assert row["positive_polyp"] == row["decision"] == row["p_polyp"] == "" and row["error"]


def test_table_is_not_gone_on_with_by_another_calibration(data, checkpoint, calibration, tmp_path, monkeypatch, capsys):
    def interrupt(table, rows):
        raise KeyboardInterrupt

    out, other = tmp_path / "p.csv", tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(calibration.read_text()) | dict(temperature=1.0)))
    with monkeypatch.context() as patch:
        patch.setattr("hifuse_timm.predict.table.Table.write", interrupt)
        assert predict(data, checkpoint, out, "--calibration", calibration) == 130
    for options in (["--calibration", other], []):
        assert predict(data, checkpoint, out, "--resume", *options) == 1
        assert "was begun with calibration " in capsys.readouterr().err
    assert predict(data, checkpoint, out, "--resume", "--calibration", calibration) == 0


@pytest.fixture(scope="module")
def others(tmp_path_factory, checkpoint, calibration):
    """Another training's checkpoint, and files that differ from the calibration."""
    folder = tmp_path_factory.mktemp("others")
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["head.fc.bias"] = content["state_dict"]["head.fc.bias"] + 1
    torch.save(content, folder / "other.pth.tar")
    file = json.loads(calibration.read_text())
    names = ["polyp", "Übergang", "flu"]
    (folder / "classes.json").write_text(json.dumps(file | dict(classes=names)))
    unknown = file["fitted_on"] | dict(weights=None)
    (folder / "unknown.json").write_text(json.dumps(file | dict(fitted_on=unknown)))
    order = [CLASSES[2], CLASSES[0], CLASSES[1]]
    (folder / "order.json").write_text(json.dumps(file | dict(classes=order)))
    return folder


def test_calibration_of_other_weights_or_classes_is_refused_everywhere(
    data, checkpoint, calibration, others, tmp_path, capsys
):
    publish = ["publish", *network(checkpoint)[:3], "{}", "--data-dir", data, "--repo-id", REPO_ID]
    publish += ["--dry-run", tmp_path / "out"]
    cases = (
        (others / "other.pth.tar", calibration, f"calibration {calibration} was fitted on the probabilities of one"),
        (
            checkpoint,
            others / "classes.json",
            "classes.json has the classes polyp, Übergang, flu, the network has polyp",
        ),
    )
    for weights, file, words in cases:
        options = ["--calibration", file]
        assert evaluate(data, weights, tmp_path, *options) == 1
        assert words in capsys.readouterr().err
        assert predict(data, weights, tmp_path / "p.csv", *options) == 1
        assert words in capsys.readouterr().err
        assert main([*(str(word).format(weights) for word in publish), *map(str, options)]) == 1
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_probabilities_that_the_calibration_may_not_be_of_are_named(
    data, checkpoint, calibration, others, tmp_path, caplog, capsys
):
    assert predict(data, checkpoint, tmp_path / "p.csv", "--calibration", others / "unknown.json") == 0
    assert "unknown.json does not say of which weights it is" in caplog.text
    assert predict(data, checkpoint, tmp_path / "p.csv", "--calibration", calibration, "--tta") == 0
    assert "is of images as they are, and tta averages over their flips" in caplog.text
    assert "was fitted on images at" not in caplog.text
    assert predict(data, checkpoint, tmp_path / "p.csv", "--calibration", calibration, "--img-size", 64) == 0
    assert "was fitted on images at input_size [3, 32, 32], and these are at [3, 64, 64]" in caplog.text
    options = ["--checkpoint", checkpoint, checkpoint, "--calibration", calibration]
    assert predict(data, checkpoint, tmp_path / "p.csv", *options) == 1  # averaged networks are not the one
    assert "was fitted on the probabilities of one network with other weights" in capsys.readouterr().err


def test_classes_of_a_calibration_are_matched_by_name(data, checkpoint, calibration, others, tmp_path):
    for name, file in (("a.csv", calibration), ("b.csv", others / "order.json")):
        assert predict(data, checkpoint, tmp_path / name, "--calibration", file) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_evaluate_refuses_the_images_that_were_calibrated_on(data, checkpoint, calibration, tmp_path, caplog, capsys):
    assert evaluate(data, checkpoint, tmp_path, "--calibration", calibration, split="val") == 1
    assert f"calibration {calibration} was fitted on these images, of the split val" in capsys.readouterr().err
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data/val").rglob("*.png")).unlink()
    assert evaluate(tmp_path / "data", checkpoint, tmp_path, "--calibration", calibration, split="val") == 0
    assert "was fitted on a split val, as this is" in caplog.text


def test_best_checkpoint_is_picked_without_a_calibration(data, checkpoint, calibration, others, tmp_path, capsys):
    options = ["--checkpoint", checkpoint, others / "other.pth.tar", "--metric", "f1", "--calibration", calibration]
    assert evaluate(data, checkpoint, tmp_path, *options, split="val") == 1
    assert "calibration is of one checkpoint, and metric f1 picks the best of several" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(predictions="0" * 64), "are not those of run {run}, or were changed since"),
        (dict(predictions=None), "run {run}: predictions is null, expected a SHA-256"),
        (dict(calibration=dict(checksum="0" * 64)), "run {run} is calibrated already"),
        (dict(split="test"), "are of the split test, on which nothing may be chosen"),
        (dict(kind="average"), "run {run} is no evaluation"),
    ],
)
def test_run_that_does_not_go_with_the_predictions_is_refused(change, words, val, tmp_path, capsys):
    run = tmp_path / "run.json"
    run.write_text(json.dumps(json.loads((val / "run.json").read_text()) | change))
    assert calibrate(val / "predictions.csv", tmp_path / "out.json", "--run", run) == 1
    assert words.format(run=run) in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_calibrated_runs_are_averaged_with_calibrated_ones_alone(runs, capsys):
    assert main(["average", *(str(folder / "run.json") for folder in runs)]) == 1
    assert f"run {runs[1] / 'run.json'} is of calibrated probabilities, " in capsys.readouterr().err


def publish(data, checkpoint, out, *options) -> int:
    command = ["publish", *network(checkpoint)[:4], "--data-dir", data, "--repo-id", REPO_ID, "--dry-run", out]
    return main([*map(str, [*command, *options])])


def test_published_calibration_is_that_of_the_published_weights(
    data, checkpoint, calibration, runs, tmp_path, capsys, caplog
):
    out, file = tmp_path / "out", json.loads(calibration.read_text())
    assert publish(data, checkpoint, out, "--calibration", calibration) == 0
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "calibration.json",
    }
    assert json.loads((out / "calibration.json").read_text()) == file
    card = ModelCard.load(out / "README.md").text
    low, high = file["temperature_interval"]
    assert f"a temperature {file['temperature']:.3f} (95% interval {low:.3f} - {high:.3f}), fitted on 30 images" in card
    assert "On the images that it was fitted on, so better than on others." in card
    assert f"| polyp | sensitivity 90 | {file['thresholds']['polyp']['threshold']:.4g} | " in card
    assert str(checkpoint.parent) not in card + (out / "calibration.json").read_text()

    options = ["--pretrained", "--calibration", out / "calibration.json"]
    command = ["predict", data / "test", "--model", f"local-dir:{out}", *options, "--csv", tmp_path / "p.csv"]
    assert main([*map(str, [*command, "--workers", 0, "--device", "cpu"])]) == 0
    ours, theirs = (read(path)[1] for path in (tmp_path / "p.csv", runs[1] / "predictions.csv"))
    assert np.abs(ours - theirs).max() < 1e-5
    assert "calibration" not in caplog.text

    assert publish(data, checkpoint, out, "--calibration", calibration, "--space") == 0
    assert json.loads((out / "space/calibration.json").read_text()) == file
    assert "calibration='calibration.json'" in (out / "space/app.py").read_text()

    capsys.readouterr()
    assert publish(data, checkpoint, out) == 0  # replaces its own, without a calibration now
    assert not (out / "calibration.json").exists()
    (out / "calibration.json").write_text("mine")
    assert publish(data, checkpoint, out) == 1
    assert "holds other files, calibration.json among them" in capsys.readouterr().err


def test_card_has_what_the_calibration_reaches_on_the_evaluated_images(
    data, checkpoint, calibration, runs, tmp_path, capsys
):
    run = runs[1] / "run.json"
    options = ["--metrics", run, "--calibration", calibration]
    assert publish(data, checkpoint, tmp_path / "out", *options) == 0
    card = ModelCard.load(tmp_path / "out/README.md").text
    measured = json.loads(run.read_text())["calibration"]["measured"]
    assert "On the split test, which it was not fitted on. The metrics above are of calibrated" in card
    assert f"| {100 * measured['thresholds']['polyp']['sensitivity']:.2f} | " in card
    assert (
        f"| Brier score, % | {100 * measured['before']['brier']:.2f} | {100 * measured['after']['brier']:.2f} |" in card
    )
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(calibration.read_text()) | dict(temperature=1.0)))
    for options in ([], ["--calibration", other]):
        assert publish(data, checkpoint, tmp_path / "none", "--metrics", run, *options) == 1
        assert f"metrics {run} are of probabilities that were calibrated" in capsys.readouterr().err
    damaged = json.loads(run.read_text())
    damaged["calibration"]["measured"]["thresholds"]["polyp"]["sensitivity"] = "high"
    other.write_text(json.dumps(damaged))
    assert publish(data, checkpoint, tmp_path / "none", "--metrics", other, "--calibration", calibration) == 1
    assert "calibration.measured.thresholds.polyp.sensitivity is" in capsys.readouterr().err
