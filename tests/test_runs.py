"""Files of runs and metrics are read whole, or refused by one error that names the file and the field."""

import copy
import json
from collections.abc import Iterator

import pytest

from hifuse_timm.__main__ import main
from hifuse_timm.evaluate import average, format_result
from hifuse_timm.model_card import _describe_evaluation
from hifuse_timm.runs import CLASS_METRICS, METRICS, read_metrics, read_run


def make_run(accuracy: float = 0.8) -> dict:
    """What `evaluate --json` writes, of three classes; the last never occurs, so that it has no AUROC."""
    metrics = dict.fromkeys(METRICS, 0.75) | dict(accuracy=accuracy)
    of_class = dict(images=10, predicted=9, **dict.fromkeys(CLASS_METRICS, 0.7), intervals=dict(f1=[0.6, 0.8]))
    return dict(
        **metrics,
        kind="evaluation",
        model="hifuse_tiny",
        architecture="hifuse_tiny",
        dataset="isic2018",
        title="ISIC 2018",
        split="test",
        counts=dict(images=30, classes=3),
        origins=dict(weights="x.pth.tar"),
        in_train=dict(content=0, group=3),
        intervals=dict(
            **dict(level=0.95, method="bootstrap", unit="groups", groups=9, resamples=9, seed=0),
            **dict(over_images=dict.fromkeys(METRICS, [0.7, 0.8])),
            **dict.fromkeys(METRICS, [0.7, 0.9]),
        ),
        per_class=dict(a=of_class, b=dict(of_class), c=of_class | dict(auroc=None)),
        confusion=[[1, 2, 3]] * 3,
        paper=dict(method="HiFuse_Tiny", accuracy=0.8299, f1=0.7299),
        conditions=dict(device="cpu"),
    )


def write(path, content) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def find_fields(content: dict, within: tuple = ()) -> list[tuple]:
    """The path of every field of an object, and of the objects in it."""
    found = []
    for name, value in content.items():
        found.append((*within, name))
        if isinstance(value, dict):
            found += find_fields(value, (*within, name))
    return found


BAD = [None, True, "x", "\n# a | <b>", -0.5, 2, 10**400, 1e300, [], [1], ["a"], [0.9, 0.1], [0.1, None], {}, {"a": 1}]
GONE = object()  # stands for a field that is not there


def change_fields(whole: dict) -> Iterator[tuple[tuple, dict]]:
    """Each field's path and the object with that field as each of `BAD`, and without it."""
    for field in find_fields(whole):
        for value in (*BAD, GONE):
            content = copy.deepcopy(whole)
            inside = content
            for name in field[:-1]:
                inside = inside[name]
            inside.pop(field[-1]) if value is GONE else inside.update({field[-1]: value})
            yield field, content


@pytest.fixture(scope="module")
def mean(tmp_path_factory):
    """What `average --json` writes of runs and their predictions."""
    folder = tmp_path_factory.mktemp("runs")
    for i in range(2):
        write(folder / f"{i}.json", make_run(0.8 + 0.1 * i))
    pooled = {name: make_run()[name] for name in (*METRICS, "counts", "intervals")}
    return average([folder / "0.json", folder / "1.json"]) | dict(pooled=pooled)


@pytest.mark.parametrize("kind", ["evaluation", "average"])
def test_any_change_of_a_run_is_read_to_the_end_or_names_file_and_field(kind, mean, tmp_path):
    whole = make_run() if kind == "evaluation" else mean
    write(tmp_path / "other.json", make_run(0.9))
    path = tmp_path / "run.json"
    refused = accepted = 0
    for field, content in change_fields(whole):
        write(path, content)
        try:
            numbers, evaluation = read_metrics(path)
            if evaluation:
                _describe_evaluation(numbers, evaluation)
            if kind == "evaluation":
                format_result(average([path, tmp_path / "other.json"]))
            accepted += 1
        except ValueError as e:
            message = str(e)
            assert str(path) in message and "\n" not in message and len(message) < 500, message
            assert field[-1] in message or field == ("kind",) or "the classes" in message, (field, message)
            refused += 1
    assert refused > 700 and accepted > 50  # of what nobody reads, as conditions, everything is fine


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(accuracy=-0.1), "run {path}: accuracy is -0.1, expected a number from 0 to 1"),
        (dict(accuracy=None), "run {path}: accuracy is null, expected a number from 0 to 1"),
        (dict(accuracy=10**400), "run {path}: accuracy is 1000000"),
        (dict(recall=True), "run {path}: recall is true, expected a number from 0 to 1"),
        (dict(intervals=None), "run {path}: intervals is null, expected an object"),
        (dict(split=["test"]), 'run {path}: split is ["test"], expected a text'),
        (
            dict(counts=dict(images=-3, classes=2)),
            "run {path}: counts.images is -3, expected a whole number, 0 or more",
        ),
        (dict(per_class={}), "run {path}: per_class is empty, expected an object of the classes"),
        (dict(per_class={"a\nb": {}}), r"run {path} lacks per_class.a\nb.images, which evaluate and average write"),
        (dict(paper={"method": "M", "f1": "high"}), 'run {path}: paper.f1 is "high", expected a number from 0 to 1'),
        (
            dict(intervals=make_run()["intervals"] | dict(f1=[0.9, 0.1])),
            "run {path}: intervals.f1 is [0.9, 0.1], expected",
        ),
    ],
)
def test_field_that_is_wrong_is_named_with_what_would_be_right(change, words, tmp_path, capsys):
    path = tmp_path / "run.json"
    write(path, make_run() | change)
    write(tmp_path / "other.json", make_run())
    assert main(["average", str(path), str(tmp_path / "other.json")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: " + words.format(path=path)) and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"accuracy": 0.', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"accuracy": ' + "1" * 9000 + "}", "no JSON"),
        ("[]", "a list, expected an object"),
        ('"run"', "a str, expected an object"),
        ('{"accuracy": NaN}', "expected finite numbers"),
        ('{"accuracy": 1e400}', "expected finite numbers"),
        ('{"accuracy": ' + "1" * 400 + "}", "accuracy is 111"),
        ('{"split": "test"}', "expected finite numbers"),
        ('{"kind": "evaluation", "accuracy": 0.5}', "lacks balanced_accuracy"),
    ],
)
def test_file_that_is_neither_run_nor_metrics_is_refused(content, words, tmp_path):
    write(tmp_path / "run.json", content)
    with pytest.raises(ValueError) as error:
        read_metrics(tmp_path / "run.json")
    assert f"metrics {tmp_path / 'run.json'}" in str(error.value) and words in str(error.value)
    with pytest.raises(ValueError, match="run .*run.json"):
        read_run(tmp_path / "run.json")
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="no JSON"):
        read_metrics(tmp_path / "run.json")


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            dict(in_train=dict(content=1, patient=12)),
            "**Of these images, 1 has the content of an image of train, and 12 ",
        ),
        (dict(in_train=dict(content=0, patient=12)), "**Of these images, 12 are of a patient that train has: figures "),
        (
            dict(in_train=dict(content=0, lesion=0)),
            "none has the content of an image of train, and none is of a lesion ",
        ),
        (dict(in_train=dict(content=0)), "whether train has others of their patients is not known."),
        (dict(in_train={}), "is not known."),
        (dict(in_train={}, split="train"), "These are the images that it was trained on"),
        (dict(in_train={"*x*": 2}), r"2 are of a \*x\* that train has"),
    ],
)
def test_card_says_what_train_has_of_the_images(changes, words):
    run = make_run() | changes
    assert words in _describe_evaluation(dict(accuracy=run["accuracy"]), run)


def test_average_adds_up_what_train_has_of_all_runs(tmp_path):
    write(tmp_path / "0.json", make_run(0.8))
    write(tmp_path / "1.json", make_run(0.9) | dict(in_train=dict(group=4)))
    mean = average([tmp_path / "0.json", tmp_path / "1.json"])
    assert mean["in_train"] == dict(group=7)  # of the second it is not known whether train has any of its images
    assert "**Of these images, 7 are of a group that train has" in _describe_evaluation(dict(accuracy=0.85), mean)


def test_runs_of_earlier_versions_lack_later_metrics(tmp_path):
    later = {*METRICS} - {"accuracy", "balanced_accuracy", "f1", "precision", "recall", "auroc", "ece"}
    assert len(later) == 6
    for i in range(2):
        run = make_run(0.8 + 0.1 * i)
        for inside in (run, run["intervals"], *run["per_class"].values()):
            for name in later & inside.keys():
                del inside[name]
        write(tmp_path / f"{i}.json", run)
    mean = average([tmp_path / "0.json", tmp_path / "1.json"])
    assert mean["accuracy"] == pytest.approx(0.85) and all(mean[name] is None for name in later)
    shown = next(line for line in format_result(mean).splitlines() if line.startswith("Brier score"))
    assert shown.split()[2:6] == ["n/a"] * 4
    numbers, evaluation = read_metrics(tmp_path / "0.json")
    assert not later & numbers.keys() and "| accuracy |" in _describe_evaluation(numbers, evaluation)


def test_values_that_are_no_fractions_have_their_own_bounds(tmp_path):
    write(tmp_path / "run.json", make_run() | dict(mcc=-0.5, brier=1.5))
    assert read_run(tmp_path / "run.json")["brier"] == 1.5
    write(tmp_path / "run.json", make_run() | dict(brier=2.5))
    with pytest.raises(ValueError, match="brier is 2.5, expected a number from 0 to 2, or null"):
        read_run(tmp_path / "run.json")


def test_undefined_auroc_is_no_fault(tmp_path):
    for i in range(2):
        run = make_run(0.8 + 0.1 * i) | dict(auroc=None, paper=dict(method="M", auroc=0.5, accuracy=0.8))
        write(tmp_path / f"{i}.json", run | dict(intervals=run["intervals"] | dict(auroc=None)))
    assert "n/a" in format_result(average([tmp_path / "0.json", tmp_path / "1.json"]))
    numbers, evaluation = read_metrics(tmp_path / "0.json")
    assert "auroc" not in numbers and "| accuracy |" in _describe_evaluation(numbers, evaluation)
