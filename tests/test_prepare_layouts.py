"""The forms in which people have the paper's datasets, beside those that the miniatures are in."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from miniatures import ISIC_COLUMNS, encode, paint, write_covid19ct, write_isic2018, write_kvasir, write_zip

from hifuse_timm.prepare import prepare
from hifuse_timm.prepare.layouts import COUNTS

ISIC_INPUT, ISIC_TRUTH = "ISIC2018_Task3_Training_Input", "ISIC2018_Task3_Training_GroundTruth"
ISIC_LESIONS = "ISIC2018_Task3_Training_LesionGroupings"
HAM_PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def read_rows(folder: Path) -> list[dict[str, str]]:
    return read_table(folder / "splits.csv")


def read_dataset(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def findings(folder: Path) -> dict[str, list[str]]:
    return {finding["kind"]: finding["files"] for finding in read_dataset(folder)["findings"]}


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return write_isic2018(tmp_path_factory.mktemp("isic"), zipped=False)


def write_ham10000(isic: Path, root: Path, ending: str = ".csv", zipped: bool = False) -> Path:
    """The same images in the layout of HAM10000."""
    truth = read_table(isic / ISIC_TRUTH / f"{ISIC_TRUTH}.csv")
    lesion_of = {row["image"]: row["lesion_id"] for row in read_table(isic / f"{ISIC_LESIONS}.csv")}
    root.mkdir()
    with open(root / f"HAM10000_metadata{ending}", "w", newline="") as f:
        writer = csv.writer(f, delimiter="\t" if ending == ".tab" else ",")
        writer.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"])
        for row in truth:
            label = next(label for label in ISIC_COLUMNS if row[label] == "1.0")
            writer.writerow([lesion_of[row["image"]], row["image"], label.lower(), "histo", "80.0", "male", "scalp"])
    images = sorted((isic / ISIC_INPUT).glob("*.jpg"))
    for part, files in zip(HAM_PARTS, (images[:80], images[80:]), strict=True):
        if zipped:
            write_zip(root / f"{part}.zip", {image.name: image.read_bytes() for image in files})
        else:
            (root / part).mkdir()
            for image in files:
                shutil.copy(image, root / part)
    return root


@pytest.mark.parametrize("ending, zipped", [(".csv", False), (".tab", True), ("", True)])
@pytest.mark.parametrize("group_by", [None, "lesion"])
def test_ham10000_is_split_as_isic2018(group_by, ending, zipped, isic, tmp_path):
    ham = write_ham10000(isic, tmp_path / "ham", ending, zipped)
    options = dict(seed=5, group_by=group_by, val_share=0.3, allow_incomplete=True)
    [a] = prepare("isic2018", isic, tmp_path / "a", **options)
    [b] = prepare("isic2018", ham, tmp_path / "b", **options)
    assert read_rows(a) == read_rows(b) and list(findings(b)) == ["count"]
    assert read_dataset(a)["shared_with_train"] == read_dataset(b)["shared_with_train"]
    assert read_dataset(b)["name"] == "isic2018"


def test_half_of_ham10000_is_named(isic, tmp_path):
    ham = write_ham10000(isic, tmp_path / "ham")
    shutil.rmtree(ham / HAM_PARTS[1])
    with pytest.raises(FileNotFoundError, match=f"lacks {HAM_PARTS[1]}: expected"):
        prepare("isic2018", ham, tmp_path / "out")
    (ham / "HAM10000_metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {HAM_PARTS[1]}, HAM10000_metadata: expected"):
        prepare("isic2018", ham, tmp_path / "out")


def test_diagnosis_that_is_none_of_the_seven_is_found(isic, tmp_path):
    ham = write_ham10000(isic, tmp_path / "ham")
    table = ham / "HAM10000_metadata.csv"
    lines = table.read_text().splitlines()
    name = lines[3].split(",")[1]
    lines[3] = lines[3].replace(lines[3].split(",")[2], "scar", 1)
    table.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"invalid-label.*\n.*{name}"):
        prepare("isic2018", ham, tmp_path / "out")


def test_images_of_a_lesion_in_train_are_counted(isic, tmp_path):
    lesion_of = {row["image"]: row["lesion_id"] for row in read_table(isic / f"{ISIC_LESIONS}.csv")}
    [out] = prepare("isic2018", isic, tmp_path / "out", allow_incomplete=True)
    lesions = [(row["split"], lesion_of[Path(row["file"]).stem]) for row in read_rows(out)]
    trained = {lesion for split, lesion in lesions if split == "train"}
    shared = Counter(split for split, lesion in lesions if split != "train" and lesion in trained)
    assert shared["test"] > 0
    expected = {"unit": "lesion", "val": shared["val"], "test": shared["test"]}
    assert read_dataset(out)["shared_with_train"] == expected
    source = tmp_path / "without"
    shutil.copytree(isic, source)
    (source / f"{ISIC_LESIONS}.csv").unlink()
    [out] = prepare("isic2018", source, tmp_path / "out", allow_incomplete=True)
    assert "shared_with_train" not in read_dataset(out)  # nothing is known


@pytest.mark.parametrize("form", ["ISIC", "Dataverse"])
def test_official_test_set_is_the_test_set(form, isic, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(isic, source)
    images = source / ("ISIC2018_Task3_Test_Input" if form == "ISIC" else "ISIC2018_Task3_Test_Images")
    images.mkdir()
    rng = np.random.default_rng(9)
    rows = []
    for number in range(14):
        image = paint(number % 7, 7, (80, 72), "RGB", rng)
        (images / f"ISIC_{34524 + number:07}.jpg").write_bytes(encode(image, ".jpg"))
        label = ISIC_COLUMNS[number % 7]
        name = f"ISIC_{34524 + number:07}"
        one_hot = [name, *(str(float(label == column)) for column in ISIC_COLUMNS)]
        rows.append(one_hot if form == "ISIC" else [f"HAMTEST_{number}", name, label.lower()])
    with open(source / "ISIC2018_Task3_Test_GroundTruth.csv", "w", newline="") as f:
        header = ["image", *ISIC_COLUMNS] if form == "ISIC" else ["lesion_id", "image_id", "dx"]
        csv.writer(f).writerows([header, *rows])

    with pytest.raises(ValueError, match="test: 14 of 1,512"):
        prepare("isic2018", source, tmp_path / "out", test="official")
    [out] = prepare("isic2018", source, tmp_path / "out", test="official", val_share=0.25, allow_incomplete=True)
    splits = {Path(row["file"]).stem: row["split"] for row in read_rows(out)}
    assert {name for name, split in splits.items() if split == "test"} == {f"ISIC_{34524 + n:07}" for n in range(14)}
    assert Counter(splits.values()) == {"train": 126, "val": 42, "test": 14}
    assert read_dataset(out)["test"] == "official"
    shutil.rmtree(images)
    with pytest.raises(FileNotFoundError, match="lacks ISIC2018_Task3_Test_Input: expected"):
        prepare("isic2018", source, tmp_path / "out", test="official")


@pytest.mark.parametrize("zipped", [True, False])
def test_kvasir_v2_is_known_by_its_name(zipped, tmp_path, monkeypatch):
    source = write_kvasir(tmp_path / "source", zipped=False)
    folder = (source / "kvasir-dataset").rename(source / "kvasir-dataset-v2")
    if zipped:
        shutil.make_archive(source / "kvasir-dataset-v2", "zip", source, "kvasir-dataset-v2")
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="polyps: 24 of 1,000"):
        prepare("kvasir", source, tmp_path / "out")
    monkeypatch.setitem(COUNTS, "kvasir-v2", dict.fromkeys(COUNTS["kvasir"], 24))
    for seed in range(2):
        for folder in prepare("kvasir", source, tmp_path / "out", seed=seed):
            dataset = read_dataset(folder)
            assert (dataset["name"], dataset["title"], dataset["complete"]) == ("kvasir-v2", "Kvasir v2", True)
            assert "8,000" in dataset["description"] and "1,000 a class (version 2)" in dataset["description"]
    write_kvasir(source, zipped=zipped)
    with pytest.raises(ValueError, match="holds kvasir-dataset and kvasir-dataset-v2: give the folder of one"):
        prepare("kvasir", source, tmp_path / "out")


@pytest.fixture
def covid(tmp_path):
    """COVID19-CT with the provider's tables of patients, three images each; every fourth name lacks its ending."""
    source = write_covid19ct(tmp_path / "source", zipped=False)
    for label, table in (("CT_COVID", "COVID-CT-MetaInfo.xlsx"), ("CT_NonCOVID", "NonCOVID-CT-MetaInfo.csv")):
        rows = []
        for number, image in enumerate(sorted((source / "Images-processed" / label).glob("[!.]*"))):
            name = image.stem if number % 4 == 0 and label == "CT_COVID" else image.name
            rows.append((name, f"{label} patient {number // 3}"))
        if table.endswith(".xlsx"):
            book = openpyxl.Workbook()
            for row in [("File name", "Patient ID", "Age"), *rows, (None, None, None)]:
                book.active.append(row)
            book.save(source / table)
        else:
            with open(source / table, "w", newline="") as f:
                numbered = [(number, *row) for number, row in enumerate(rows)]
                csv.writer(f).writerows([("", "image name", "patient id"), *numbered])
    return source


def test_patients_of_covid19ct_stay_in_one_split_and_are_counted_elsewhere(covid, tmp_path):
    [out] = prepare("covid19ct", covid, tmp_path / "out", group_by="patient", allow_incomplete=True)
    rows = read_rows(out)
    assert len({row["group"] for row in rows}) == 16 and list(findings(out)) == ["count"]
    assert len({(row["group"], row["split"]) for row in rows}) == 16
    assert read_dataset(out)["shared_with_train"] == {"unit": "patient", "val": 0, "test": 0}
    assert (read_dataset(out)["split"], read_dataset(out)["group_by"]) == ("paper", "patient")

    patients = {Path(row["file"]).name: row["group"] for row in rows}
    for split in ("official", "paper"):
        [out] = prepare("covid19ct", covid, tmp_path / split, split=split, allow_incomplete=True)
        rows = [(row["split"], patients[Path(row["file"]).name]) for row in read_rows(out)]
        trained = {patient for of, patient in rows if of == "train"}
        shared = Counter(of for of, patient in rows if of != "train" and patient in trained)
        expected = {"unit": "patient", "val": shared["val"], "test": shared["test"]}
        assert shared["test"] > 0 and read_dataset(out)["shared_with_train"] == expected
        assert all(row["subject"] == patients[Path(row["file"]).name] != row["group"] for row in read_rows(out))


def test_images_that_the_tables_of_patients_lack_are_remarked(covid, tmp_path):
    table = covid / "NonCOVID-CT-MetaInfo.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], "99,gone.jpg,patient 99"]))
    [out] = prepare("covid19ct", covid, tmp_path / "out", group_by="patient", allow_incomplete=True)
    assert findings(out)["patient-without-image"] == ["CT_NonCOVID/gone.jpg"]
    lost = f"CT_NonCOVID/{lines[-1].split(',')[1]}"
    assert findings(out)["image-without-patient"] == [lost]
    assert [row["group"] for row in read_rows(out) if row["file"].endswith(lost)] == [lost]
    table.unlink()
    with pytest.raises(FileNotFoundError, match="lacks NonCOVID-CT-MetaInfo.csv: expected"):
        prepare("covid19ct", covid, tmp_path / "out", group_by="patient", allow_incomplete=True)
    [out] = prepare("covid19ct", covid, tmp_path / "official", allow_incomplete=True)
    assert "shared_with_train" not in read_dataset(out)
