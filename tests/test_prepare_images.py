"""What `prepare images` makes of folders of one's own and of lists as they are in the wild."""

import csv
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import timm
from dicoms import write_dicom
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.prepare import Columns, prepare_images


def draw(path: Path, number: int) -> Path:
    """Write an image that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.frombuffer(number.to_bytes(12, "big"), np.uint8).reshape(2, 2, 3)).save(path, lossless=True)
    return path


@pytest.fixture
def images(tmp_path):
    """A folder of 40 images, scan0.png to scan39.png."""
    for number in range(40):
        draw(tmp_path / "images" / f"scan{number}.png", number)
    return tmp_path / "images"


LABELS = ["benign" if number % 2 else "malignant" for number in range(40)]
PATIENTS = [f"p{number // 4}" for number in range(40)]


def write_list(path: Path, header: list[str], rows: list, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def write_labels(images: Path, labels: list[str], header: str = "label") -> Path:
    rows = [(f"scan{number}.png", label) for number, label in enumerate(labels)]
    return write_list(images.parent / "list.csv", ["image", header], rows)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "splits.csv", newline="") as f:
        return list(csv.DictReader(f))


def read_dataset(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def findings(folder: Path) -> dict[str, list[str]]:
    return {finding["kind"]: finding["files"] for finding in read_dataset(folder)["findings"]}


def labels_of(folder: Path) -> dict[str, str]:
    return {Path(row["file"]).name: row["class"] for row in read_rows(folder)}


def check_groups_are_whole(folder: Path) -> None:
    splits = defaultdict(set)
    for row in read_rows(folder):
        splits[row["group"]].add(row["split"])
    assert all(len(of_group) == 1 for of_group in splits.values())


# Folders


def test_folders_of_classes_are_split_and_timm_reads_them(tmp_path):
    for number in range(60):
        draw(tmp_path / "images" / ("10" if number % 3 else "9") / f"{number}.png", number)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out")
    dataset = read_dataset(out)
    assert dataset["classes"] == ["9", "10"]  # as timm numbers them
    sizes = {split: sum(of_split.values()) for split, of_split in dataset["counts"].items()}
    assert sizes == {"train": 43, "val": 5, "test": 12}
    assert (dataset["name"], dataset["seed"], dataset["license"]) == ("out", 0, "unknown")
    for split in ("train", "validation", "test"):
        assert list(timm.data.create_dataset("", root=str(out), split=split).reader.class_to_idx) == dataset["classes"]


def test_folders_of_splits_are_kept(tmp_path):
    for number in range(24):
        split = ("Training", "test", "valid")[number % 3]
        draw(tmp_path / "images" / split / "ab"[number % 2] / "deeper" / f"{number}.png", number)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out")
    assert read_dataset(out)["counts"] == {split: {"a": 4, "b": 4} for split in ("train", "val", "test")}
    assert (read_dataset(out)["split_scheme"], read_dataset(out)["seed"]) == ("as given", None)
    for option in (dict(test_share=0.5), dict(folds=2), dict(val_share=0.2)):
        with pytest.raises(ValueError, match=f"{next(iter(option))} .* is for a draw, and .* given"):
            prepare_images(tmp_path / "images", tmp_path / "other", **option)


def test_val_is_drawn_from_the_train_that_is_given(tmp_path):
    for number in range(48):
        draw(tmp_path / "images" / ("train", "train", "test")[number % 3] / "ab"[number % 2] / f"{number}.png", number)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", val_share=0.25)
    assert read_dataset(out)["counts"] == {
        split: {"a": count, "b": count} for split, count in (("train", 12), ("val", 4), ("test", 8))
    }


def test_images_of_one_name_are_told_apart(tmp_path):
    for number in range(40):
        draw(tmp_path / "images" / "ab"[number % 2] / f"visit{number // 2}" / "scan.png", number)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out")
    assert len(read_rows(out)) == 40 and len(findings(out)["renamed"]) == 38
    assert "b/visit1/scan.png as b/b_visit1_scan.png" in findings(out)["renamed"]


def test_images_outside_of_a_class_are_found(tmp_path):
    for number in range(40):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", number)
    draw(tmp_path / "images" / "lost.png", 40)
    (tmp_path / "images" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="misplaced-image.*\n.*lost.png"):
        prepare_images(tmp_path / "images", tmp_path / "out")
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", allow_incomplete=True)
    assert findings(out) == {"misplaced-image": ["lost.png"], "surplus-file": ["notes.txt"]}


def test_other_formats_become_png(tmp_path):
    for number in range(40):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.{('png', 'tif', 'bmp', 'webp')[number % 4]}", number)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out")
    assert len(findings(out)["format"]) == 30 and len(read_rows(out)) == 40
    names = {name for split in ("train", "validation", "test") for name in list_timm(out, split)}
    assert names == {row["file"] for row in read_rows(out)} and "2.bmp.png" in {Path(name).name for name in names}


def list_timm(out: Path, split: str) -> list[str]:
    reader = timm.data.create_dataset("", root=str(out), split=split).reader
    return [str(Path(reader.filename(i, absolute=True)).relative_to(out)) for i in range(len(reader))]


# Shares, folds, groups


@pytest.mark.parametrize("test_share, val_share, counts", [(0.5, 0, (20, 0, 20)), (0.15, 0.3, (24, 10, 6))])
def test_shares_are_met_and_classes_balanced(test_share, val_share, counts, images, tmp_path):
    table = write_labels(images, LABELS)
    [out] = prepare_images(images, tmp_path / "out", table=table, test_share=test_share, val_share=val_share)
    found = Counter(row["split"] for row in read_rows(out))
    assert tuple(found[split] for split in ("train", "val", "test")) == counts
    for of_split in read_dataset(out)["counts"].values():
        assert abs(of_split["benign"] - of_split["malignant"]) <= 1


def test_seed_decides_the_draw(images, tmp_path):
    table = write_labels(images, LABELS)
    rows = [
        read_rows(prepare_images(images, tmp_path / f"out{i}", table=table, seed=seed)[0])
        for i, seed in enumerate((3, 3, 4))
    ]
    assert rows[0] == rows[1] != rows[2]


def test_groups_stay_whole_in_shares_and_folds(images, tmp_path):
    rows = [(f"scan{n}.png", label, patient) for n, (label, patient) in enumerate(zip(LABELS, PATIENTS, strict=True))]
    table = write_list(tmp_path / "list.csv", ["image", "label", "patient"], rows)
    [out] = prepare_images(images, tmp_path / "out", table=table, val_share=0.25)
    check_groups_are_whole(out)
    assert len({row["group"] for row in read_rows(out)}) == 10
    assert read_dataset(out)["shared_with_train"] == {"unit": "patient", "val": 0, "test": 0}
    assert read_dataset(out)["group_by"] == "patient"

    folders = prepare_images(images, tmp_path / "folds", table=table, folds=5, val_share=0.25)
    assert [folder.name for folder in folders] == [f"fold{number}" for number in range(1, 6)]
    tested = []
    for number, folder in enumerate(folders, 1):
        check_groups_are_whole(folder)
        assert read_dataset(folder)["fold"] == number
        tested += [Path(row["file"]).name for row in read_rows(folder) if row["split"] == "test"]
    assert sorted(tested) == sorted(f"scan{number}.png" for number in range(40))


def test_other_folds_take_the_place_of_earlier_ones(images, tmp_path):
    table = write_labels(images, LABELS)
    prepare_images(images, tmp_path / "out", table=table, folds=4)
    prepare_images(images, tmp_path / "out", table=table, folds=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fold1", "fold2"]


def test_class_with_fewer_groups_than_splits_is_named(images, tmp_path):
    labels = ["benign"] * 20 + ["malignant"] * 18 + ["rare"] * 2
    table = write_labels(images, labels)
    with pytest.raises(ValueError, match=r"fewer groups .* than the 3 splits: rare \(2\)"):
        prepare_images(images, tmp_path / "out", table=table)
    [out] = prepare_images(images, tmp_path / "out", table=table, val_share=0, test_share=0.5)
    assert all(of_split["rare"] == 1 for of_split in read_dataset(out)["counts"].values())
    with pytest.raises(ValueError, match=r"than the 5 splits: rare \(2\)"):
        prepare_images(images, tmp_path / "folds", table=table, folds=5)


def test_small_classes_are_in_every_split(images, tmp_path):
    table = write_labels(images, ["common"] * 34 + ["rare"] * 3 + ["rarer"] * 3)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert all(all(of_split.values()) for of_split in read_dataset(out)["counts"].values())


# Lists as they are in the wild


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_delimiters(delimiter, encoding, images, tmp_path):
    labels = ["Größe, klein" if number % 2 else "Narbe" for number in range(40)]
    rows = [(f"scan{number}.png", label) for number, label in enumerate(labels)]
    table = write_list(tmp_path / "list.csv", ["image", "label"], rows, delimiter, encoding)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert read_dataset(out)["classes"] == ["Größe, klein", "Narbe"]
    said = [f["message"] for f in read_dataset(out)["findings"]]
    assert any("Windows-1252" in message for message in said) == (encoding == "cp1252")


def test_excel_keeps_what_is_shown(images, tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["File name", "Class", "Patient ID"])
    for number in range(40):
        sheet.append([f"scan{number}", number % 2, 7])
        if number % 4 < 2:
            sheet.cell(number + 2, 3).number_format = "000"
    sheet.append([None, None, None])
    book.save(tmp_path / "list.xlsx")
    with pytest.raises(ValueError, match=r"fewer groups .* 0 \(2\), 1 \(2\)"):  # 7 and 007
        prepare_images(images, tmp_path / "out", table=tmp_path / "list.xlsx")
    [out] = prepare_images(images, tmp_path / "out", table=tmp_path / "list.xlsx", val_share=0, test_share=0.5)
    assert {row["group"] for row in read_rows(out)} == {"7", "007"} and read_dataset(out)["classes"] == ["0", "1"]


def test_excel_without_openpyxl_names_the_extra(images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "list.xlsx").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"openpyxl cannot be imported .*hifuse-timm\[medical\]"):
        prepare_images(images, tmp_path / "out", table=tmp_path / "list.xlsx")


def test_everything_is_text(images, tmp_path):
    patients = ["007", "7", "1e5", "100000", "1.0", "1", "TRUE", "NULLA", "00", "0"]
    rows = [(f"scan{n}", ("NA", "None")[n % 2], patients[n // 4]) for n in range(40)]
    table = write_list(tmp_path / "list.csv", ["image", "label", "patient"], rows)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert {row["group"] for row in read_rows(out)} == set(patients)
    assert read_dataset(out)["classes"] == ["NA", "None"] and "unknown-group" not in findings(out)


@pytest.mark.parametrize(
    "name", ["scan{}.png", "scan{}", "images/scan{}.png", "C:\\data\\images\\scan{}.png", "SCAN{}"]
)
def test_names_with_and_without_folder_and_ending(name, images, tmp_path):
    rows = [(name.format(number), label) for number, label in enumerate(LABELS)]
    [out] = prepare_images(
        images, tmp_path / "out", table=write_list(tmp_path / "list.csv", ["Image Name ", " Diagnosis"], rows)
    )
    assert labels_of(out) == {f"scan{number}.png": label for number, label in enumerate(LABELS)}


def test_folder_in_the_list_tells_images_of_one_name_apart(tmp_path):
    rows = []
    for number in range(40):
        draw(tmp_path / "images" / f"case{number}" / "scan.png", number)
        rows.append((f"data/case{number}/scan.png", LABELS[number]))
    table = write_list(tmp_path / "list.csv", ["path", "label"], rows)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", table=table)
    assert len(read_rows(out)) == 40
    table = write_list(tmp_path / "list.csv", ["path", "label"], [("scan.png", "a"), *rows])
    with pytest.raises(ValueError, match="ambiguous-name.*\n.*scan.png"):
        prepare_images(tmp_path / "images", tmp_path / "out", table=table)


def test_ending_and_folder_in_the_list_tell_images_apart(tmp_path):
    rows = []
    for number in range(40):
        path = ("a/scan{}.png", "a/scan{}.bmp", "b/a/scan{}.png", "scan{}.png")[number % 4].format(number // 4)
        draw(tmp_path / "images" / path, number)
        rows.append((f"images/{path}" if number % 4 == 1 else path, LABELS[number]))
    table = write_list(tmp_path / "list.csv", ["path", "label"], rows)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", table=table)
    assert len(read_rows(out)) == 40


def test_columns_are_kept_as_they_are(images, tmp_path):
    rows = [(f"scan{n}", LABELS[n], PATIENTS[n], " Ward, 3" if n % 2 else "", n % 2) for n in range(40)]
    table = write_list(tmp_path / "list.csv", ["image", "label", "patient", "site", "smokes"], rows)
    options = ["prepare", "images", "--source", str(images), "--csv", str(table), "--out", str(tmp_path / "out")]
    assert main([*options, "--keep", "site", "smokes"]) == 0
    found = {Path(row["file"]).stem: row for row in read_rows(tmp_path / "out")}
    assert list(found["scan1"]) == ["file", "class", "split", "group", "checksum", "site", "smokes"]
    for name, _, patient, site, smokes in rows:
        assert (found[name]["group"], found[name]["site"]) == (patient, site.strip())
        assert found[name]["smokes"] == str(smokes)
    with pytest.raises(ValueError, match="keep group: splits.csv has columns of its own of this name"):
        table = write_list(tmp_path / "list.csv", ["image", "label", "group"], [row[:3] for row in rows])
        prepare_images(images, tmp_path / "again", table=table, columns=Columns(keep=["group"]))


def test_columns_are_guessed_and_said(images, tmp_path):
    rows = [(f"HAM_{number // 2}", f"scan{number}", label, "histo") for number, label in enumerate(LABELS)]
    table = write_list(tmp_path / "list.csv", ["lesion_id", "image_id", "dx", "dx_type"], rows)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    columns = {"image": "image_id", "label": ["dx"], "group": "lesion_id"}
    assert read_dataset(out)["columns"] == columns and read_dataset(out)["group_by"] == "lesion_id"
    [said] = [f["message"] for f in read_dataset(out)["findings"] if f["kind"] == "list"]
    assert said == "list.csv: image from image_id (guessed); label from dx (guessed); group from lesion_id (guessed)"


@pytest.mark.parametrize(
    "header, columns, words",
    [
        (["scan", "label"], {}, "has columns scan, label, other: none is obviously the image; give --image"),
        (["image", "finding"], {}, "none is obviously the label; give --label"),
        (["image", "label"], dict(group="patient"), "has columns image, label, other: lacks patient"),
        (["image", "label"], dict(keep=["site"]), "has columns image, label, other: lacks site"),
        (["image", "file"], dict(label=["other"]), "several columns that may be the image: image, file: give --image"),
        (["image", "image"], {}, "has more than one column image"),
    ],
)
def test_column_that_is_missing_is_named(header, columns, words, images, tmp_path):
    rows = [(f"scan{number}", label, "x") for number, label in enumerate(LABELS)]
    table = write_list(tmp_path / "list.csv", [*header, "other"], rows)
    with pytest.raises(ValueError, match=words):
        prepare_images(images, tmp_path / "out", table=table, columns=Columns(**columns))
    assert not (tmp_path / "out").exists()


def test_blanks_at_the_ends_are_nothing(images, tmp_path):
    rows = [(f" scan{number}.png", f"{label} " if number % 3 else label) for number, label in enumerate(LABELS)]
    table = write_list(tmp_path / "list.csv", [" image", "label\xa0"], rows)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert read_dataset(out)["classes"] == ["benign", "malignant"]


@pytest.mark.parametrize("a, b", [("NV", "nv"), ("01", "1"), ("a/b", "a\\b"), ("é", "e\u0301")])
def test_labels_that_folders_would_not_tell_apart_are_named(a, b, images, tmp_path):
    table = write_labels(images, [a, b, "other", "other"] * 10)
    with pytest.raises(ValueError, match="differ in case or signs only") as error:
        prepare_images(images, tmp_path / "out", table=table)
    assert repr(a) in str(error.value) and repr(b) in str(error.value)


@pytest.mark.parametrize("label, folder", [("benign/nevus", "benign_nevus"), ("..", "_"), (".hidden", "_hidden")])
def test_label_that_is_no_folder_name_keeps_its_name(label, folder, images, tmp_path):
    [out] = prepare_images(images, tmp_path / "out", table=write_labels(images, [label, "other"] * 20))
    assert read_dataset(out)["class_descriptions"] == {folder: label, "other": "other"}
    assert {path.name for path in (out / "train").iterdir()} == {folder, "other"}


def test_one_hot_columns_are_the_label(images, tmp_path):
    rows = [(f"scan{n}", n % 3 == 0 and "1.0" or "0.0", int(n % 3 == 1), int(n % 3 == 2)) for n in range(40)]
    table = write_list(tmp_path / "list.csv", ["image", "MEL", "NV", "BCC"], rows)
    for columns in (Columns(), Columns(label=["MEL", "NV", "BCC"])):
        [out] = prepare_images(images, tmp_path / "out", table=table, columns=columns)
        assert labels_of(out) == {f"scan{n}.png": ("MEL", "NV", "BCC")[n % 3] for n in range(40)}
        assert read_dataset(out)["columns"]["label"] == ["MEL", "NV", "BCC"]


@pytest.mark.parametrize("unknown", ["", "-1", "-1.0", "unknown"])
def test_unknown_patients_are_groups_of_their_own(unknown, images, tmp_path):
    rows = [(f"scan{n}", LABELS[n], unknown if n < 20 else PATIENTS[n]) for n in range(40)]
    [out] = prepare_images(
        images, tmp_path / "out", table=write_list(tmp_path / "list.csv", ["image", "label", "patient"], rows)
    )
    assert len({row["group"] for row in read_rows(out)}) == 25
    assert sorted(findings(out)["unknown-group"]) == sorted(f"scan{n}.png" for n in range(20))


@pytest.mark.parametrize(
    "labels",
    [["a", "b", "a|b", "b"], ["a", "b", "a;b", "b"], ["a", "b", "a, b", "b"], ["a", "c|a", "b", "b"]],
)
def test_several_labels_in_a_cell_are_refused(labels, images, tmp_path):
    with pytest.raises(ValueError, match=r"is several in one, .*multi-label"):
        prepare_images(images, tmp_path / "out", table=write_labels(images, labels * 10))


def test_several_ones_in_a_row_are_refused(images, tmp_path):
    rows = [(f"scan{n}", 1, n % 2) for n in range(40)]
    table = write_list(tmp_path / "list.csv", ["image", "a", "b"], rows)
    with pytest.raises(ValueError, match="several labels in a row, a, b: .*multi-label"):
        prepare_images(images, tmp_path / "out", table=table, columns=Columns(label=["a", "b"]))


def test_labels_may_hold_commas(images, tmp_path):
    [out] = prepare_images(images, tmp_path / "out", table=write_labels(images, ["melanoma, nodular", "melanoma"] * 20))
    assert read_dataset(out)["classes"] == ["melanoma", "melanoma, nodular"]


def test_split_of_the_list_is_kept(images, tmp_path):
    splits = ["train", "TRAIN", "Training", "train", "val", "validation", "test", "test"]
    rows = [(f"scan{n}", LABELS[n], splits[n % 8]) for n in range(40)]
    table = write_list(tmp_path / "list.csv", ["image", "label", "split"], rows)
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert Counter(row["split"] for row in read_rows(out)) == {"train": 20, "val": 10, "test": 10}
    rows[3] = ("scan3", "benign", "holdout")
    with pytest.raises(ValueError, match="has 'holdout' in the column split, expected train, val or test"):
        prepare_images(
            images, tmp_path / "x", table=write_list(tmp_path / "list.csv", ["image", "label", "split"], rows)
        )


@pytest.mark.parametrize(
    "kind, named, change",
    [
        ("label-without-image", "scan99", lambda rows: rows.append(("scan99", "benign", "p0", "train"))),
        ("image-without-label", "scan7.png", lambda rows: rows.pop(7)),
        ("contradictory-rows", "scan7.png", lambda rows: rows.append(("scan7", "malignant", "p1", "test"))),
        ("row-without-label", "scan7", lambda rows: rows.__setitem__(7, ("scan7", " ", "p1", "test"))),
        ("row-without-image", "row 9", lambda rows: rows.__setitem__(7, ("", "benign", "p1", "test"))),
        ("row-without-split", "scan7", lambda rows: rows.__setitem__(7, ("scan7", "benign", "p1", ""))),
        ("uneven-row", "row 9", lambda rows: rows.__setitem__(7, ("scan7", "benign", "p1", "test", "more"))),
        ("group-across-splits", "p1", lambda rows: rows.__setitem__(7, ("scan7", "benign", "p1", "train"))),
    ],
)
def test_fault_of_a_list_is_found(kind, named, change, images, tmp_path):
    rows = [(f"scan{n}", LABELS[n], PATIENTS[n], ("train", "test")[n // 4 % 2]) for n in range(40)]
    change(rows)
    table = write_list(tmp_path / "list.csv", ["image", "label", "patient", "split"], rows)
    with pytest.raises(ValueError, match=f"{kind}: ") as error:
        prepare_images(images, tmp_path / "out", table=table)
    assert named in str(error.value) and not (tmp_path / "out").exists()
    [out] = prepare_images(images, tmp_path / "out", table=table, allow_incomplete=True)
    assert any(named in file for file in findings(out)[kind]) and not read_dataset(out)["complete"]
    check_groups_are_whole(out)


def test_row_that_repeats_another_is_remarked(images, tmp_path):
    table = write_labels(images, LABELS)
    table.write_text(table.read_text() + "scan0.png,malignant\n")
    [out] = prepare_images(images, tmp_path / "out", table=table)
    assert findings(out)["repeated-row"] == ["scan0.png"] and len(read_rows(out)) == 40


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "list.csv is empty"),
        (b"\x81\x8d\x8f", "list.csv cannot be read as text"),
        (b'image,label\nscan0,"' + b"x" * 200_000, "list.csv is no CSV file"),
    ],
)
def test_list_that_cannot_be_read_is_named(content, words, images, tmp_path):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        prepare_images(images, tmp_path / "out", table=tmp_path / "list.csv")
    (tmp_path / "list.xlsx").write_bytes(content)
    with pytest.raises(ValueError, match="list.xlsx cannot be read as an Excel file"):
        prepare_images(images, tmp_path / "out", table=tmp_path / "list.xlsx")


def test_class_of_which_all_images_are_missing_is_not_forgotten(images, tmp_path):
    table = write_labels(images, LABELS)
    table.write_text(table.read_text() + "gone0,rare\ngone1,rare\ngone2,rare\n")
    with pytest.raises(ValueError, match="train would have no image of rare") as error:
        prepare_images(images, tmp_path / "out", table=table, allow_incomplete=True)
    assert "label-without-image" in str(error.value)
    table.write_text("image,label\ngone0,a\ngone1,b\n")
    with pytest.raises(ValueError, match="train would have no image of a, b.*\n.*label-without-image") as error:
        prepare_images(images, tmp_path / "out", table=table, allow_incomplete=True)


# DICOM


def test_dicom_becomes_png_grouped_by_patient_and_nothing_else_is_copied(tmp_path):
    ramp = np.arange(64).reshape(8, 8).astype(np.uint16)
    for number in range(24):
        path = tmp_path / "images" / "ab"[number % 2] / f"IM{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        patient = f"patient-{number // 4}" if number < 16 else ""
        write_dicom(
            path,
            np.roll(ramp, number),
            PatientID=patient,
            PatientName="Doe^Jane",
            PatientBirthDate="19700101",
            SeriesInstanceUID=f"1.2.{number // 4}",
        )
    (tmp_path / "images" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", val_share=0, test_share=0.5)
    check_groups_are_whole(out)
    assert findings(out)["surplus-file"] == ["DICOMDIR"]
    assert {row["group"] for row in read_rows(out)} == {f"patient-{n}" for n in range(4)} | {"1.2.4", "1.2.5"}
    assert read_dataset(out)["group_by"] == "patient" and len(findings(out)["dicom"]) == 24
    for path in out.rglob("*"):
        if path.is_file():
            assert b"Doe" not in path.read_bytes() and b"19700101" not in path.read_bytes()
    for row in read_rows(out):
        with Image.open(out / row["file"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))


def test_groups_of_the_list_go_before_those_of_dicom(tmp_path):
    rows = []
    for number in range(16):
        path = tmp_path / "images" / f"1.2.840.{number}"
        path.parent.mkdir(exist_ok=True)
        write_dicom(path, np.full((8, 8), number, np.uint16), PatientID="one", WindowCenter=8, WindowWidth=16)
        rows.append((f"1.2.840.{number}", "ab"[number % 2], f"p{number // 2}"))
    table = write_list(tmp_path / "list.csv", ["image", "label", "patient"], rows)
    [out] = prepare_images(tmp_path / "images", tmp_path / "out", table=table, val_share=0, test_share=0.5)
    assert {row["group"] for row in read_rows(out)} == {f"p{number}" for number in range(8)}


# What dataset.json says, and what is refused


def test_options_go_into_dataset_json(images, tmp_path):
    [out] = prepare_images(
        images,
        tmp_path / "out",
        table=write_labels(images, ["0", "1"] * 20),
        classes={"0": "benign lesion", "1": "malignant lesion"},
        name="own",
        title="Own",
        description="Scans of our clinic.",
        license="cc-by-4.0",
        url="https://clinic.example",
        citation="Doe (2026)",
    )
    dataset = read_dataset(out)
    assert dataset["class_descriptions"] == {"0": "benign lesion", "1": "malignant lesion"}
    said = {key: dataset[key] for key in ("name", "title", "description", "license", "source", "citation")}
    assert said == dict(
        name="own",
        title="Own",
        description="Scans of our clinic.",
        license="cc-by-4.0",
        source="https://clinic.example",
        citation="Doe (2026)",
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="isic2018"), "name 'isic2018' is that of a dataset of the paper"),
        (dict(name="a/b"), "name 'a/b' is not valid"),
        (dict(test_share=1.0), "test_share 1.0 is not valid"),
        (dict(val_share=-0.1), "val_share -0.1 is not valid"),
        (dict(folds=1), "folds 1 is too few"),
        (dict(folds=5, test_share=0.2), "test_share 0.2 is not for folds"),
        (dict(seed=-1), "seed -1 is not valid"),
        (dict(columns=Columns(image="image")), "columns are those of a list: give csv"),
        (dict(classes={"a": "", "c": ""}), "labels b are none of the classes given, a, c"),
        (dict(table="none.csv"), "csv none.csv does not exist"),
    ],
)
def test_option_that_does_not_fit_is_named(options, words, tmp_path):
    for number in range(8):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", number)
    with pytest.raises((ValueError, OSError), match=words):
        prepare_images(tmp_path / "images", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_without_images_or_classes_are_named(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        prepare_images(tmp_path / "images", tmp_path / "out")
    draw(tmp_path / "images" / "a" / "1.png", 1)
    with pytest.raises(ValueError, match="there is one class, a, expected two or more"):
        prepare_images(tmp_path / "images", tmp_path / "out")
    with pytest.raises(ValueError, match="lies in the source"):
        prepare_images(tmp_path / "images", tmp_path / "images" / "out")
