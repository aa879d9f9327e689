"""What `prepare medmnist` makes of MedMNIST's files, and the command line of `prepare`."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hifuse_timm.cli import main
from hifuse_timm.prepare import prepare_medmnist

COUNTS = {"train": 12, "val": 6, "test": 8}


def make_arrays(shape: tuple[int, ...] = (7, 7), classes: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in COUNTS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes)[:, None]
    return arrays


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "splits.csv", newline="") as f:
        return list(csv.DictReader(f))


def read_dataset(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


@pytest.mark.parametrize("shape", [(7, 7), (7, 7, 3)], ids=["grey", "RGB"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_labels_and_split_are_those_of_the_file(save, shape, tmp_path):
    arrays = make_arrays(shape)
    save(tmp_path / "pneumoniamnist_64.npz", **arrays)
    [out] = prepare_medmnist(tmp_path / "pneumoniamnist_64.npz", tmp_path / "out")
    dataset = read_dataset(out)
    assert (dataset["name"], dataset["title"]) == ("pneumoniamnist", "PneumoniaMNIST")
    assert dataset["classes"] == ["normal", "pneumonia"] and dataset["license"] == "cc-by-4.0"
    assert dataset["complete"] and dataset["read_from"] == ["pneumoniamnist_64.npz"]
    assert Counter(row["split"] for row in read_rows(out)) == COUNTS
    for row in read_rows(out):
        number = int(Path(row["file"]).stem.removeprefix(row["split"]))
        assert row["class"] == dataset["classes"][arrays[f"{row['split']}_labels"][number, 0]]
        with Image.open(out / row["file"]) as image:
            assert np.array_equal(np.asarray(image), arrays[f"{row['split']}_images"][number])


def test_classes_of_an_unknown_name_are_numbers(tmp_path):
    np.savez(tmp_path / "own.npz", **make_arrays(classes=3))
    [out] = prepare_medmnist(tmp_path, tmp_path / "out")  # the only file of the folder
    assert read_dataset(out)["classes"] == ["0", "1", "2"]


def test_official_split_is_kept_where_it_repeats_images(tmp_path):
    arrays = make_arrays()
    arrays["test_images"][1] = arrays["train_images"][1]
    arrays["val_images"][0] = arrays["train_images"][1]  # of another class
    arrays["val_images"][3] = arrays["train_images"][3]
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    [out] = prepare_medmnist(tmp_path / "breastmnist.npz", tmp_path / "out")
    assert Counter(row["split"] for row in read_rows(out)) == COUNTS
    found = {f["kind"]: (f["severity"], f["message"], len(f["files"])) for f in read_dataset(out)["findings"]}
    kept = "kept, as the provider has them"
    assert found == {
        "contradictory-labels": ("remark", f"images of the same content in two classes: {kept}", 1),
        "duplicate-across-splits": ("remark", f"images of the same content in several splits: {kept}", 1),
    }


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("organmnist3d.npz", {}, "organmnist3d.npz is 3-D"),
        ("chestmnist.npz", {}, "chestmnist.npz is multi-label"),
        ("own.npz", dict(val_images=np.zeros((6, 7, 7, 7), np.uint8)), "own.npz, val is 3-D, 7 x 7 x 7"),
        ("own.npz", dict(train_labels=np.zeros((12, 14), int)), "own.npz, train is multi-label, 14 a row"),
        (
            "own.npz",
            dict(train_labels=np.array([None] * 12)),
            "own.npz is no file of MedMNIST that can be read without pickle: ",
        ),
        (
            "own.npz",
            dict(train_images=np.array([{}] * 12)),
            "own.npz is no file of MedMNIST that can be read without pickle: ",
        ),
        ("own.npz", dict(test_images=np.zeros((8, 7, 7))), "has images of float64 and labels of int64, expected uint8"),
        ("own.npz", dict(test_labels=np.zeros(7, int)), "has 8 images and 7 labels"),
        ("breastmnist.npz", dict(test_labels=np.arange(8)), "has labels from 0 to 7, expected 0 to 1"),
        ("own.npz", dict(test_labels=np.arange(8) << 40), "expected 0 to 999"),
    ],
)
def test_file_that_is_no_such_dataset_is_refused_by_name(name, change, words, tmp_path):
    np.savez(tmp_path / name, **(make_arrays() | change))
    with pytest.raises(ValueError, match=words):
        prepare_medmnist(tmp_path / name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, **make_arrays())
    whole = path.read_bytes()
    arrays = make_arrays()
    del arrays["val_labels"]
    np.savez(path, **arrays)
    lacking = path.read_bytes()
    np.savez_compressed(path, **make_arrays())
    start = path.read_bytes().index(b"train_images.npy") + 60
    overwritten = path.read_bytes()[:start] + bytes(range(40)) + path.read_bytes()[start + 40 :]
    for content, words in (
        (whole[:-50], "File is not a zip file"),
        (whole[300:], ""),
        (overwritten, ""),
        (b"", "zip"),
        (lacking, "lacks val_labels"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"own.npz is no file of MedMNIST .*{words}"):
            prepare_medmnist(path, tmp_path / "out")
    (tmp_path / "other.npz").write_bytes(whole)
    with pytest.raises(ValueError, match="holds other.npz, own.npz: give one file"):
        prepare_medmnist(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="none.npz does not exist"):
        prepare_medmnist(tmp_path / "none.npz", tmp_path / "out")


# The command


def test_command_prepares_medmnist(tmp_path, capsys):
    np.savez(tmp_path / "breastmnist.npz", **make_arrays())
    command = ["prepare", "medmnist", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed == f"{tmp_path / 'out'}: BreastMNIST, 2 classes, 12 train, 6 val, 8 test images\n"
    assert main([*command, "--seed", "1", "--csv", "list.csv"]) == 1
    assert capsys.readouterr().err == "error: --csv, --seed cannot be given for medmnist\n"
    assert main(["prepare", "kvasir", *command[2:], "--label", "dx"]) == 1
    assert capsys.readouterr().err == "error: --label cannot be given for kvasir\n"


def test_command_prepares_a_list_and_says_its_columns(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    rows = ["File name;Finding;Who;Set"]
    for number in range(24):
        pixels = np.full((2, 2, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number};{'ab'[number % 2]};p{number // 2};{('train', 'train', 'test')[number // 2 % 3]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    command = ["prepare", "images", "--source", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    options = ["--label", "Finding", "--group", "Who", "--title", "Own", "--classes", "a=first", "b"]
    assert main([*command, "--csv", str(tmp_path / "list.csv"), *options, "--val-share", "0.25", "--name", "own"]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: Own, 2 classes, 12 train, 4 val, 8 test images\n"
        f"{tmp_path / 'out'}: images whose Who is in train too: 0 of val and 0 of test\n"
        "list: list.csv: image from File name (guessed); label from Finding; group from Who; split from Set (guessed)\n"
    )
    dataset = read_dataset(tmp_path / "out")
    assert (dataset["name"], dataset["class_descriptions"]) == ("own", {"a": "first", "b": "b"})
    assert main([*command, "--folds", "3", "--test-share", "0.2"]) == 1
    assert capsys.readouterr().err == "error: test_share 0.2 is not for folds, each of which is tested once\n"
