"""`predict`: a table of probabilities for images of one's own, the same however it came about."""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import NARROW
from dicoms import write_dicom
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.image_folders import find_images, walk_files

CLASSES = ["polyp", "Übergang", "normal, or so"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared dataset of three classes and eleven images, of different sizes and modes."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(11):
        folder = root / "test" / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (40 + i, 36, 3), dtype=np.uint8))
        image.convert("L" if i == 4 else "RGB").save(folder / f"{i}.png")
    (root / "dataset.json").write_text(json.dumps(dict(name="own", title="Own", classes=CLASSES)))
    return root


def save_checkpoint(path: Path, seed: int, **args) -> Path:
    torch.manual_seed(seed)
    model = timm.create_model("hifuse_tiny", num_classes=3, **NARROW)
    state_dict = model.state_dict() | {"head.fc.weight": 20 * model.head.fc.weight.detach()}
    args = dict(model_kwargs=NARROW, img_size=32, mean=[0.3, 0.4, 0.5]) | args
    torch.save(dict(state_dict=state_dict, args=argparse.Namespace(**args)), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("training") / "last.pth.tar", 0)


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    """One of another training, at another size and normalisation."""
    return save_checkpoint(tmp_path_factory.mktemp("training") / "last.pth.tar", 1, img_size=48, mean=[0.5] * 3)


def arguments(sources, checkpoints, data, out, *options) -> list[str]:
    sources = sources if isinstance(sources, list) else [sources]
    command = ["predict", *sources, "--model", "hifuse_tiny", "--checkpoint", *checkpoints, "--csv", out]
    names = [] if data is None else ["--data-dir", data]
    return [*map(str, [*command, *names, "--workers", "0", "--device", "cpu", "--batch-size", "4", *options])]


def read(path) -> tuple[list[dict], np.ndarray]:
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return rows, np.array([[float(row[f"p_{name}"] or "nan") for name in CLASSES] for row in rows])


@pytest.fixture(scope="module")
def table(tmp_path_factory, data, checkpoint):
    """The table of all images."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    assert main(arguments(data / "test", [checkpoint], data, path)) == 0
    return path


@pytest.mark.parametrize("options", [[], ["--fuse", "--precision", "bfloat16"]])
def test_probabilities_are_those_of_evaluate_to_the_last_digit(options, data, checkpoint, tmp_path):
    assert main(arguments(data / "test", [checkpoint], data, tmp_path / "p.csv", *options)) == 0
    evaluate = ["evaluate", "--model", "hifuse_tiny", "--checkpoint", checkpoint, "--data-dir", data, "--device", "cpu"]
    evaluate += ["--predictions", tmp_path / "e.csv", "--workers", "0", "--batch-size", "4", "--resamples", "9"]
    assert main([*map(str, evaluate), *options]) == 0
    ours, theirs = (read(tmp_path / name)[0] for name in ("p.csv", "e.csv"))
    assert len(ours) == 11 and len({row["predicted"] for row in ours}) > 1
    for our, their in zip(ours, theirs, strict=True):
        assert Path(our.pop("path")).relative_to(data) == Path(their.pop("file"))
        assert our.pop("error") == "" and their.pop("class") in CLASSES
        assert our == their


def test_image_that_cannot_be_read_keeps_its_row_with_the_reason(data, checkpoint, table, tmp_path, capsys):
    shutil.copytree(data / "test", tmp_path / "test")
    bad = tmp_path / "test" / CLASSES[0] / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (tmp_path / "test" / "notes.txt").write_text("no image")
    for workers in ("0", "1"):
        assert main(arguments(tmp_path / "test", [checkpoint], data, tmp_path / "p.csv", "--workers", workers)) == 1
        rows, probs = read(tmp_path / "p.csv")
        expected, expected_probs = read(table)
        assert [Path(row["path"]).name for row in rows] == [Path(row["path"]).name for row in expected]
        (index,) = [i for i, row in enumerate(rows) if row["error"]]
        assert rows[index]["path"] == str(bad) and "is damaged" in rows[index]["error"]
        assert rows[index]["predicted"] == "" and np.isnan(probs[index]).all()
        assert np.array_equal(np.delete(probs, index, 0), np.delete(expected_probs, index, 0))
        printed = capsys.readouterr()
        assert "11 images, 1 of which cannot be read" in printed.out
        assert "images a second" in printed.err


def test_table_that_was_cut_off_is_gone_on_with_to_the_same_bytes(data, checkpoint, table, tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    command = arguments(data / "test", [checkpoint], data, path)
    write = "hifuse_timm.predict.table.Table.write"
    monkeypatch.setattr(write, interrupt)
    assert main(command) == 130
    monkeypatch.undo()
    whole = table.read_bytes()
    header, *lines = whole.splitlines(keepends=True)
    computed = []
    monkeypatch.setattr("hifuse_timm.predict.prediction.batched", count_batches(computed))
    path.write_bytes(header + b"".join(lines[:6]) + lines[6][:-3])  # killed within a row, and within a batch
    assert main([*command, "--resume"]) == 0
    assert path.read_bytes() == whole
    assert computed == [4, 4, 3]  # of which the first is left out
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def interrupt(table, rows):
    raise KeyboardInterrupt


def count_batches(computed):
    from hifuse_timm.inference import batched

    def count(files, batch_size):
        for batch in batched(files, batch_size):
            computed.append(len(batch))
            yield batch

    return count


@pytest.mark.parametrize(
    "options, words",
    [
        (["--batch-size", "5"], "was begun with batch_size 4, now it is 5"),
        (["--tta"], "was begun with tta False, now it is True"),
        (["--mean", "0.5"], "was begun with networks"),
        (["--classes", "a", "b", "c"], "has other columns, expected path, predicted, p_a, p_b, p_c, error"),
    ],
)
def test_table_is_not_gone_on_with_otherwise(options, words, data, checkpoint, begun, capsys):
    before = begun.read_bytes()
    assert main(arguments(data / "test", [checkpoint], data, begun, "--resume", *options)) == 1
    assert words in capsys.readouterr().err and begun.read_bytes() == before


@pytest.fixture
def begun(data, checkpoint, table, tmp_path, monkeypatch):
    """A table of which eight rows are there."""
    with monkeypatch.context() as patch:
        patch.setattr("hifuse_timm.predict.table.Table.write", interrupt)
        assert main(arguments(data / "test", [checkpoint], data, tmp_path / "p.csv")) == 130
    (tmp_path / "p.csv").write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:9]))
    return tmp_path / "p.csv"


def test_table_is_not_gone_on_with_where_the_weights_or_the_images_have_changed(
    data, checkpoint, other_checkpoint, begun, tmp_path, capsys
):
    command = arguments(data / "test", [checkpoint], data, begun, "--resume")
    shutil.copy(checkpoint, tmp_path / "kept.pth.tar")
    try:
        save_checkpoint(checkpoint, 2)
        assert main(command) == 1
        assert "was begun with networks" in capsys.readouterr().err
    finally:
        shutil.copy(tmp_path / "kept.pth.tar", checkpoint)
    begun.write_bytes(begun.read_bytes().replace(b"/1.png", b"/0.png"))
    assert main(command) == 1
    assert "they have changed since" in capsys.readouterr().err


def test_table_that_is_not_whole_is_not_lost_and_a_whole_one_not_gone_on_with(data, checkpoint, begun, capsys):
    before = begun.read_bytes()
    command = arguments(data / "test", [checkpoint], data, begun)
    assert main(command) == 1
    assert "is not whole yet, as p.csv.resume.json beside it says: resume it" in capsys.readouterr().err
    assert begun.read_bytes() == before
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume"]) == 1
    assert "there is nothing to resume" in capsys.readouterr().err
    assert main(command) == 0  # a whole one is replaced


def test_several_checkpoints_are_averaged_each_with_its_own_transform(
    data, checkpoint, other_checkpoint, table, tmp_path, capsys
):
    assert main(arguments(data / "test", [other_checkpoint], data, tmp_path / "other.csv")) == 0
    assert main(arguments(data / "test", [checkpoint, other_checkpoint], data, tmp_path / "both.csv")) == 0
    first, second, both = (read(path)[1] for path in (table, tmp_path / "other.csv", tmp_path / "both.csv"))
    assert np.abs(first - second).max() > 0.01
    assert np.allclose(both, (first + second) / 2, rtol=1e-8, atol=0)
    rows, _ = read(tmp_path / "both.csv")
    assert [row["predicted"] for row in rows] == [CLASSES[k] for k in both.argmax(1)]
    assert capsys.readouterr().out.count("weights: trained weights in") == 3


def test_checkpoints_of_other_classes_are_not_averaged(data, checkpoint, tmp_path, capsys):
    (tmp_path / "map.txt").write_text("a\nb\nc\n")
    other = save_checkpoint(tmp_path / "other.pth.tar", 1, class_map=str(tmp_path / "map.txt"))
    assert main(arguments(data / "test", [checkpoint, other], data, tmp_path / "p.csv")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{checkpoint} has polyp, Übergang, normal, or so, {other} has a, b, c" in error


def test_flips_are_averaged(data, checkpoint, tmp_path):
    expected = 0
    for name, flip in dict(
        plain=lambda x: x, mirrored=np.fliplr, down=np.flipud, both=lambda x: np.flipud(np.fliplr(x))
    ).items():
        for file in (data / "test").rglob("[0-3].png"):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            pixels = np.asarray(Image.open(file).resize((32, 32)))
            Image.fromarray(np.ascontiguousarray(flip(pixels))).save(folder / file.name)
        options = ["--crop-pct", "1"]
        assert main(arguments(tmp_path / name, [checkpoint], data, tmp_path / "p.csv", *options)) == 0
        expected = expected + read(tmp_path / "p.csv")[1] / 4
    plain = tmp_path / "plain"
    assert main(arguments(plain, [checkpoint], data, tmp_path / "p.csv", "--tta", *options)) == 0
    assert np.allclose(read(tmp_path / "p.csv")[1], expected, rtol=0, atol=1e-5)
    assert main(arguments(plain, [checkpoint], data, tmp_path / "p.csv", *options)) == 0
    assert np.abs(read(tmp_path / "p.csv")[1] - expected).max() > 1e-3


def test_dicom_is_read_whatever_its_name(data, checkpoint, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    pixels[0, :2] = 0, 255
    write_dicom(folder / "1.2.840.113", pixels)
    write_dicom(folder / "slice.DCM", pixels)
    Image.fromarray(pixels).save(folder / "slice.png")
    assert main(arguments(folder, [checkpoint], data, tmp_path / "p.csv")) == 0
    rows, probs = read(tmp_path / "p.csv")
    assert [Path(row["path"]).name for row in rows] == ["1.2.840.113", "slice.DCM", "slice.png"]
    assert np.allclose(probs, probs[0], rtol=1e-6)


def run(launcher, command) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1")
    command = [sys.executable, *launcher, "-m", "hifuse_timm", *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


TWO_PROCESSES = ["-m", "torch.distributed.run", "--nproc_per_node=2"]


def test_two_processes_write_the_same_table(data, checkpoint, tmp_path):
    shutil.copytree(data / "test", tmp_path / "test")
    (tmp_path / "test" / CLASSES[0] / "3.png").write_bytes(b"")
    tables = []
    for launcher in ([], TWO_PROCESSES):
        result = run(
            launcher, arguments(tmp_path / "test", [checkpoint], data, tmp_path / "p.csv", "--batch-size", "2")
        )
        assert result.returncode == 1, result.stderr
        assert result.stdout.count("11 images, 1 of which cannot be read") == 1
        tables.append((tmp_path / "p.csv").read_bytes())
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 12


def test_two_processes_say_once_what_is_wrong(data, checkpoint, tmp_path):
    result = run(TWO_PROCESSES, arguments(data / "test", [checkpoint], data, tmp_path / "p.csv", "--classes", "a"))
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: checkpoint {checkpoint} has 3 classes, classes has 1: a"]


# Classes


def test_classes_are_never_guessed(data, checkpoint, tmp_path, capsys):
    assert main(arguments(data / "test", [checkpoint], None, tmp_path / "p.csv")) == 1
    expected = (
        "nothing names the classes of hifuse_tiny: give data_dir (--data-dir), class_map (--class-map) or classes"
    )
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_classes_are_those_that_are_given_or_published(data, narrow, checkpoint, table, tmp_path):
    names = ["c", "b", "a"]
    assert main(arguments(data / "test", [checkpoint], data, tmp_path / "p.csv", "--classes", *names)) == 0
    rows, _ = read_as(tmp_path / "p.csv", names)
    expected, _ = read(table)
    assert [row["predicted"] for row in rows] == [names[CLASSES.index(row["predicted"])] for row in expected]

    config = dict(label_names=names)
    timm.models.save_for_hf(narrow(num_classes=3), tmp_path / "saved", model_config=config, model_args=NARROW)
    command = ["predict", data / "test", "--model", f"local-dir:{tmp_path / 'saved'}", "--pretrained"]
    assert main([*map(str, [*command, "--csv", tmp_path / "p.csv", "--img-size", 32, "--workers", 0])]) == 0
    assert {row["predicted"] for row in read_as(tmp_path / "p.csv", names)[0]} <= set(names)


def test_image_of_another_shape_is_fitted_as_asked_for(data, checkpoint, tmp_path):
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 96, 3), dtype=np.uint8)).save(tmp_path / "wide.png")
    tables = []
    for mode in ("center", "squash"):
        command = arguments(tmp_path / "wide.png", [checkpoint], data, tmp_path / f"{mode}.csv", "--crop-mode", mode)
        assert main(command) == 0
        tables.append((tmp_path / f"{mode}.csv").read_text())
    assert tables[0] != tables[1]


def read_as(path, names):
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["path", "predicted", *(f"p_{name}" for name in names), "error"]
    return rows, names


# Which files


def test_each_file_counts_once_in_the_order_of_evaluate(data, tmp_path):
    for name in ("b/2.png", "b/10.png", "b.c/1.png", "a10/x.png", "a9/x.png", "a9/deep/x.png", "z.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    expected = [path for path, _ in find_images(tmp_path / "in").samples]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").touch()
    for link, place in (("again", "in/b"), ("up", "in"), ("a.png", "in/z.png"), ("out", "out"), ("p", "out")):
        (tmp_path / "in" / link).symlink_to(tmp_path / place)
    found = list(walk_files([tmp_path / "in", tmp_path / "in" / "z.png", tmp_path / "in"]))
    assert found == [*expected[:-1], str(tmp_path / "in" / "out" / "1.png"), expected[-1]]


def test_images_are_not_all_in_memory(data, checkpoint, monkeypatch, tmp_path):
    """Their paths are found a batch ahead, and the rows are in the file by then."""
    from hifuse_timm.predict.prediction import batched

    rows = []

    def watch(files, batch_size):
        for batch in batched(files, batch_size):
            rows.append((tmp_path / "p.csv").read_bytes().count(b"\n") - 1)
            yield batch

    monkeypatch.setattr("hifuse_timm.predict.prediction.batched", watch)
    assert main(arguments(data / "test", [checkpoint], data, tmp_path / "p.csv")) == 0
    assert rows == [0, 4, 8]


@pytest.mark.parametrize(
    "options, words",
    [
        (["{data}/none"], "source {data}/none does not exist"),
        (["{empty}"], "sources {empty} have no images"),
        (["{data}", "--csv", "none/p.csv"], "none, to write p.csv in, does not exist"),
        (["{data}", "--csv", "{data}"], "{data} is a folder, expected a file"),
        (["{data}", "--classes", "a", "b"], "has 3 classes, classes has 2: a, b"),
        (["{data}", "--classes", "a", "b", "b"], "classes has a name twice: a, b, b"),
        (["{data}", "--classes", "a", "--class-map", "x.txt"], "classes and class map x.txt are both given"),
        (["{data}", "--batch-size", "0"], "batch_size 0 is too small: expected 1 or more"),
        (["{data}", "--checkpoint", "none.pth"], "checkpoint none.pth does not exist"),
    ],
)
def test_bad_argument_is_one_error_before_any_work(options, words, data, checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hifuse_timm.predict.prediction.predict_files", None)  # nothing comes to that
    places = dict(data=data / "test", empty=tmp_path / "empty")
    source, *options = [option.format(**places) for option in options]
    assert main(arguments(source, [checkpoint], data, tmp_path / "p.csv", *options)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert words.format(**places) in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
