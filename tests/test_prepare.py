"""What `prepare` makes of the providers' archives, and every fault that it finds in them before it writes."""

import csv
import hashlib
import itertools
import json
import os
import random
import shutil
import stat
import zipfile
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
from dicoms import write_dicom
from miniatures import COVID_CLASSES, ISIC_COLUMNS, MINIATURES, encode, write_covid19ct, write_zip
from PIL import Image

from hifuse_timm.__main__ import main
from hifuse_timm.datasets import DATASETS
from hifuse_timm.images import open_image
from hifuse_timm.prepare import preparation, prepare
from hifuse_timm.prepare.layouts import COUNTS, OFFICIAL_COUNTS
from hifuse_timm.prepare.splits import apportion, draw, split_covid19ct, split_isic2018, split_kvasir

ISIC_INPUT = "ISIC2018_Task3_Training_Input"
ISIC_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
ISIC_LESIONS = "ISIC2018_Task3_Training_LesionGroupings"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Gives a folder with a miniature, written once; tests must leave it as they find it."""
    root = tmp_path_factory.mktemp("miniatures")

    def write(tag: str, zipped: bool = True) -> Path:
        path = root / f"{tag}-{zipped}"
        return path if path.exists() else MINIATURES[tag](path, zipped=zipped)

    return write


@pytest.fixture
def damaged(pristine, tmp_path):
    """Copies a miniature to damage."""
    return lambda tag, zipped=False: shutil.copytree(pristine(tag, zipped), tmp_path / "source")


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def read_rows(folder: Path) -> list[dict[str, str]]:
    return read_table(folder / "splits.csv")


def read_dataset(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def names(folder: Path) -> set[str]:
    return {Path(row["file"]).name for row in read_rows(folder)}


def findings(folder: Path) -> dict[str, list[str]]:
    return {finding["kind"]: finding["files"] for finding in read_dataset(folder)["findings"]}


def check_refused_then_left_out(tag: str, source: Path, kind: str, *words: str, **options) -> Path:
    """Check that a fault is reported with nothing written, and recorded where one goes on; gives the folder."""
    out = source.parent / "out"
    before = set(source.parent.iterdir())
    with pytest.raises(ValueError) as error:
        prepare(tag, source, out, **options)
    for word in (f"{kind}: ", *words):
        assert word in str(error.value)
    assert set(source.parent.iterdir()) == before
    folder = prepare(tag, source, out, allow_incomplete=True, **options)[0]
    recorded = next(finding for finding in read_dataset(folder)["findings"] if finding["kind"] == kind)
    assert recorded["severity"] == "error" and not read_dataset(folder)["complete"]
    assert all(any(word in file for file in recorded["files"]) for word in words)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Check that a prepared folder holds what its tables say, and nothing else."""
    rows, dataset = read_rows(folder), read_dataset(folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {row["file"] for row in rows} | {"splits.csv", "dataset.json"}
    for row in rows:
        assert row["file"].split("/")[:2] == [row["split"], row["class"]]
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["checksum"]
    counts = Counter((row["split"], row["class"]) for row in rows)
    assert dataset["counts"] == {
        split: {label: counts[split, label] for label in dataset["classes"]} for split in dict(counts.keys())
    }
    splits = defaultdict(set)
    for row in rows:
        splits[row["group"]].add(row["split"])
    assert all(len(of_group) == 1 for of_group in splits.values())


# The sound way


@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "unpacked"])
@pytest.mark.parametrize("tag", MINIATURES)
def test_timm_reads_what_is_prepared(tag, zipped, pristine, tmp_path):
    folders = prepare(tag, pristine(tag, zipped), tmp_path / "out", allow_incomplete=True)
    assert [str(f.relative_to(tmp_path)) for f in folders] == (
        ["out/fold1", "out/fold2"] if tag == "kvasir" else ["out"]
    )
    for folder in folders:
        check_folder(folder)
        assert list(findings(folder)) == ["count"]
        images = 0
        for split in ("train", "validation", "test"):
            dataset = timm.data.create_dataset("", root=str(folder), split=split)
            assert list(dataset.reader.class_to_idx) == list(DATASETS[tag].labels) == read_dataset(folder)["classes"]
            assert all(dataset[i][0].mode == "RGB" for i in range(len(dataset)))
            images += len(dataset)
        assert images == 24 * DATASETS[tag].num_classes


@pytest.mark.parametrize("tag", MINIATURES)
def test_archives_and_folders_give_the_same_splits(tag, pristine, tmp_path):
    zipped = prepare(tag, pristine(tag, True), tmp_path / "zipped", allow_incomplete=True)
    unpacked = prepare(tag, pristine(tag, False), tmp_path / "unpacked", allow_incomplete=True)
    assert [read_rows(f) for f in zipped] == [read_rows(f) for f in unpacked]


@pytest.mark.parametrize("split", ["official", "paper"])
def test_whole_covid19ct_needs_no_allowance(split, tmp_path_factory, tmp_path):
    source = tmp_path_factory.getbasetemp() / "whole_covid19ct"
    if not source.exists():
        write_covid19ct(source, per_class=COUNTS["covid19ct"])
    prepare("covid19ct", source, tmp_path / "out", split=split)
    dataset = read_dataset(tmp_path / "out")
    assert dataset["complete"] and dataset["findings"] == []
    if split == "official":
        assert dataset["seed"] is None
        assert dataset["counts"] == {
            name: {label: OFFICIAL_COUNTS[label][i] for label in COVID_CLASSES}
            for i, name in enumerate(("train", "val", "test"))
        }
    else:
        sizes = {name: sum(counts.values()) for name, counts in dataset["counts"].items()}
        assert sizes == {"train": 448, "val": 112, "test": 186}


def test_dataset_json_says_what_it_is(pristine, tmp_path):
    [folder] = prepare("isic2018", pristine("isic2018"), tmp_path / "out", seed=3, val_share=0.2, allow_incomplete=True)
    dataset = read_dataset(folder)
    assert (dataset["name"], dataset["title"]) == ("isic2018", "ISIC 2018")
    assert (dataset["seed"], dataset["val_share"]) == (3, 0.2)
    assert dataset["license"] == "cc-by-nc-4.0" and "arXiv:1902.03368" in dataset["citation"]
    assert dataset["source"].startswith("https://challenge.isic-archive.com")
    assert dataset["read_from"] == [f"{ISIC_INPUT}.zip", f"{ISIC_TRUTH}.zip"]
    assert findings(folder)["count"][:2] == ["AKIEC: 24 of 327", "BCC: 24 of 514"]


def test_lesions_stay_in_one_split(pristine, tmp_path):
    source = pristine("isic2018")
    lesion_of = {row["image"]: row["lesion_id"] for row in read_table(source / f"{ISIC_LESIONS}.csv")}
    [folder] = prepare("isic2018", source, tmp_path / "out", group_by="lesion", val_share=0.3, allow_incomplete=True)
    check_folder(folder)
    rows = read_rows(folder)
    assert all(row["group"] == lesion_of[Path(row["file"]).stem] for row in rows)
    assert max(Counter(row["group"] for row in rows).values()) > 1
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_unpacked_images_are_linked_where_that_works_and_copied_elsewhere(pristine, tmp_path, monkeypatch):
    source = pristine("kvasir", False)
    [fold1, fold2] = prepare("kvasir", source, tmp_path / "linked", allow_incomplete=True)
    for fold in (fold1, fold2):
        for row in read_rows(fold):
            original = source / "kvasir-dataset" / row["class"] / Path(row["file"]).name
            assert (fold / row["file"]).samefile(original)

    def refuse(*args, **kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = prepare("kvasir", source, tmp_path / "copied", allow_incomplete=True)
    for fold, linked in zip(copied, (fold1, fold2), strict=True):
        check_folder(fold)
        assert read_rows(fold) == read_rows(linked)
        assert all((fold / row["file"]).stat().st_nlink == 1 for row in read_rows(fold))


def test_folds_of_an_archive_share_their_files(pristine, tmp_path):
    fold1, fold2 = prepare("kvasir", pristine("kvasir"), tmp_path / "out", allow_incomplete=True)
    by_name = {Path(row["file"]).name: fold1 / row["file"] for row in read_rows(fold1)}
    assert all((fold2 / row["file"]).samefile(by_name[Path(row["file"]).name]) for row in read_rows(fold2))
    tested = [{Path(r["file"]).name for r in read_rows(f) if r["split"] == "test"} for f in (fold1, fold2)]
    assert not tested[0] & tested[1] and tested[0] | tested[1] == set(by_name)


def test_command_prints_the_report_or_what_it_made(pristine, tmp_path, capsys):
    command = ["prepare", "kvasir", "--source", str(pristine("kvasir")), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: kvasir in ") and "polyps: 24 of 500" in error and "--allow-incomplete" in error
    assert not (tmp_path / "out").exists()
    assert main([*command, "--allow-incomplete", "--val-share", "0.25", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'fold2'}: Kvasir, 8 classes, 72 train, 24 val, 96 test images" in printed
    assert read_dataset(tmp_path / "out" / "fold1")["seed"] == 7


@pytest.mark.parametrize(
    "tag, part, what",
    [
        ("isic2018", ISIC_TRUTH, f"{ISIC_TRUTH}.csv"),
        ("covid19ct", "Data-split/COVID", "testCT_COVID.txt"),
        ("kvasir", "kvasir-dataset", "polyps"),
    ],
)
def test_bare_folders_and_files_are_taken(tag, part, what, damaged, tmp_path):
    source = damaged(tag)
    for path in list((source / part).iterdir()):
        path.rename(source / path.name)
    assert (source / what).exists()
    shutil.rmtree(source / part)
    if tag == "covid19ct":
        for label in COVID_CLASSES:
            (source / "Images-processed" / label).rename(source / label)
    for folder in prepare(tag, source, tmp_path / "out", allow_incomplete=True):
        assert list(findings(folder)) == ["count"]


def test_val_share_of_nothing_makes_no_val(pristine, tmp_path):
    [folder] = prepare("isic2018", pristine("isic2018"), tmp_path / "out", val_share=0, allow_incomplete=True)
    check_folder(folder)
    assert {split: sum(n.values()) for split, n in read_dataset(folder)["counts"].items()} == {"train": 118, "test": 50}


def test_out_may_be_a_link_to_where_there_is_room(pristine, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    for seed in range(2):
        prepare("covid19ct", pristine("covid19ct"), tmp_path / "out", split="paper", seed=seed, allow_incomplete=True)
        assert (tmp_path / "out").is_symlink() and {p.name for p in tmp_path.iterdir()} == {"out", "large"}
        check_folder(tmp_path / "large")


@pytest.mark.parametrize("zipped, name", [(True, "kvasir-dataset.zip"), (False, "kvasir-dataset")])
def test_part_itself_is_taken_for_the_source(zipped, name, pristine, tmp_path):
    folder = prepare("kvasir", pristine("kvasir", zipped) / name, tmp_path / "out", allow_incomplete=True)[0]
    assert list(findings(folder)) == ["count"]


# The splits


def spread(tag: str) -> list[str]:
    return [label for label, count in COUNTS[tag].items() for _ in range(count)]


def test_isic2018_is_split_as_the_paper_says():
    labels = spread("isic2018")
    groups = [str(i) for i in range(len(labels))]
    splits = split_isic2018(labels, groups, seed=0)
    assert Counter(splits) == {"train": 6309, "val": 701, "test": 3005}
    tested = Counter(label for label, split in zip(labels, splits, strict=True) if split == "test")
    for label, count in COUNTS["isic2018"].items():
        assert abs(tested[label] - count * 3005 / 10015) < 1
    assert split_isic2018(labels, groups, seed=0) == splits != split_isic2018(labels, groups, seed=1)
    assert Counter(split_isic2018(labels, groups, 0, Fraction(1, 4)))["val"] == 1753
    assert "val" not in split_isic2018(labels, groups, 0, Fraction(0))


def test_split_does_not_depend_on_the_order_of_the_images():
    labels = spread("isic2018")
    groups = [str(i) for i in range(len(labels))]
    splits = dict(zip(groups, split_isic2018(labels, groups, seed=0), strict=True))
    order = random.Random(0).sample(range(len(labels)), len(labels))
    groups = [groups[i] for i in order]
    assert dict(zip(groups, split_isic2018([labels[i] for i in order], groups, seed=0), strict=True)) == splits


def test_split_by_lesion_has_the_same_sizes():
    labels = spread("isic2018")
    sizes = random.Random(0)
    groups = []
    for label, count in COUNTS["isic2018"].items():  # HAM10000 has 7,470 lesions, three in four with one image
        of_class = []
        for lesion in itertools.count():
            of_class += [f"{label}{lesion}"] * sizes.choices((1, 2, 3, 6), (74, 20, 5, 1))[0]
            if len(of_class) >= count:
                break
        groups += of_class[:count]
    splits = split_isic2018(labels, groups, seed=0)
    assert Counter(splits) == {"train": 6309, "val": 701, "test": 3005}
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups)) < 8000


def test_covid19ct_paper_split_tests_a_quarter():
    labels = spread("covid19ct")
    splits = split_covid19ct(labels, [str(i) for i in range(len(labels))], seed=0)
    assert Counter(splits) == {"train": 448, "val": 112, "test": 186}
    tested = Counter(label for label, split in zip(labels, splits, strict=True) if split == "test")
    assert tested == {"CT_COVID": 87, "CT_NonCOVID": 99}


def test_kvasir_folds_are_halves():
    labels = spread("kvasir")
    first, second = split_kvasir(labels, [str(i) for i in range(len(labels))], seed=0)
    for splits in (first, second):
        counts = Counter(zip(labels, splits, strict=True))
        assert all(counts[label, "test"] == 250 and counts[label, "val"] == 25 for label in COUNTS["kvasir"])
    assert all((a == "test") != (b == "test") for a, b in zip(first, second, strict=True))


def test_draw_is_fair_to_groups_of_every_size():
    groups = ["a"] * 4 + ["b"] * 2 + ["c"] * 2 + list("defghijklmno")
    drawn = Counter()
    for seed in range(1500):
        indices = draw(["x"] * 20, groups, 6, random.Random(seed))
        assert len(indices) == 6
        drawn.update({groups[i] for i in indices})
    assert all(0.24 < drawn[group] / 1500 < 0.36 for group in groups)  # 0.3


def test_apportion_gives_the_later_of_equal_remainders_first():
    assert apportion(10015, (70, 30)) == [7010, 3005]
    assert apportion(746, (60, 15, 25)) == [448, 112, 186]
    assert apportion(7, (1, 1, 1)) == [2, 2, 3]


# The faults


def test_truncated_image_is_found(damaged):
    source = damaged("isic2018")
    image = source / ISIC_INPUT / "ISIC_0024310.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    folder = check_refused_then_left_out("isic2018", source, "unreadable-image", "ISIC_0024310.jpg")
    assert "ISIC_0024310.jpg" not in names(folder) and len(names(folder)) == 24 * 7 - 1


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"], ids=["empty", "no image"])
def test_file_that_is_no_image_is_found(content, damaged):
    source = damaged("covid19ct")
    (source / "Images-processed/CT_COVID/Hellwan case 1.jpg").write_bytes(content)
    folder = check_refused_then_left_out("covid19ct", source, "unreadable-image", "Hellwan case 1.jpg")
    assert "Hellwan case 1.jpg" not in names(folder)


def test_damaged_member_of_an_archive_is_found(damaged):
    source = damaged("isic2018", True)
    path = source / f"{ISIC_INPUT}.zip"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{ISIC_INPUT}/ISIC_0024320.jpg")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    content[start : start + 8] = bytes(8)
    path.write_bytes(content)
    folder = check_refused_then_left_out("isic2018", source, "unreadable-image", "ISIC_0024320.jpg")
    assert "ISIC_0024320.jpg" not in names(folder)


def test_label_without_image_is_found(damaged):
    source = damaged("isic2018")
    (source / ISIC_INPUT / "ISIC_0024310.jpg").unlink()
    check_refused_then_left_out("isic2018", source, "label-without-image", "ISIC_0024310.jpg")


def test_listed_image_that_is_missing_is_found(damaged):
    source = damaged("covid19ct")
    (source / "Images-processed/CT_NonCOVID/1%1.jpg").unlink()
    check_refused_then_left_out("covid19ct", source, "label-without-image", "CT_NonCOVID/1%1.jpg")


@pytest.mark.parametrize(
    "tag, path, kind",
    [
        ("isic2018", f"{ISIC_INPUT}/ISIC_9999999.jpg", "image-without-label"),
        ("covid19ct", "Images-processed/CT_COVID/extra.png", "image-without-label"),
        ("covid19ct", "Images-processed/CT_COVID/more/extra.png", "misplaced-image"),
        ("kvasir", "kvasir-dataset/normal-colon/extra.jpg", "misplaced-image"),
    ],
)
def test_image_that_has_no_label_is_found(tag, path, kind, damaged):
    source = damaged(tag)
    (source / path).parent.mkdir(exist_ok=True)
    (source / path).write_bytes(encode(Image.new("RGB", (20, 20)), Path(path).suffix))
    folder = check_refused_then_left_out(tag, source, kind, Path(path).name)
    assert Path(path).name not in names(folder)


def test_image_too_many_is_found(damaged, monkeypatch):
    source = damaged("kvasir")
    monkeypatch.setitem(COUNTS, "kvasir", dict.fromkeys(COUNTS["kvasir"], 24))
    assert prepare("kvasir", source, source.parent / "sound")
    (source / "kvasir-dataset/polyps/extra.jpg").write_bytes(encode(Image.new("RGB", (20, 20)), ".jpg"))
    check_refused_then_left_out("kvasir", source, "count", "polyps: 25 of 24")


def copy_image(source: Path, target: Path) -> None:
    """Write the pixels of an image as another file of other bytes."""
    with Image.open(source) as image:
        image.save(target, compress_level=1)
    assert source.read_bytes() != target.read_bytes()


def test_duplicate_across_official_splits_is_found(damaged):
    source = damaged("covid19ct")
    images = source / "Images-processed/CT_COVID"
    lists = {split: source / f"Data-split/COVID/{split}CT_COVID.txt" for split in ("train", "test")}
    trained, tested = (
        next(line for line in lists[split].read_text().splitlines() if line.endswith(".png")) for split in lists
    )
    copy_image(images / tested, images / trained)
    folder = check_refused_then_left_out(
        "covid19ct", source, "duplicate-across-splits", f"test/CT_COVID/{tested} = train/CT_COVID/{trained}"
    )
    assert tested in names(folder) and trained not in names(folder)


def test_duplicates_stay_in_one_split_where_it_is_drawn(damaged):
    source = damaged("covid19ct")
    images = sorted((source / "Images-processed/CT_COVID").glob("*.png"))
    for i in range(0, 12, 2):
        copy_image(images[i], images[i + 1])
    [folder] = prepare("covid19ct", source, source.parent / "out", split="paper", allow_incomplete=True)
    split_of = {Path(row["file"]).name: (row["split"], row["group"]) for row in read_rows(folder)}
    for i in range(0, 12, 2):
        assert split_of[images[i].name] == split_of[images[i + 1].name]
    remark = next(finding for finding in read_dataset(folder)["findings"] if finding["kind"] == "duplicate")
    assert remark["severity"] == "remark" and len(remark["files"]) == 6
    assert Counter(row["split"] for row in read_rows(folder)) == {"train": 29, "val": 7, "test": 12}


def test_duplicates_join_lesions(damaged):
    source = damaged("isic2018")
    truth = read_table(source / ISIC_TRUTH / f"{ISIC_TRUTH}.csv")
    nevi = {row["image"] for row in truth if row["NV"] == "1.0"}
    lesions = defaultdict(list)
    for row in read_table(source / f"{ISIC_LESIONS}.csv"):
        if row["image"] in nevi:
            lesions[row["lesion_id"]].append(row["image"])
    middle = next(lesion for lesion, images in lesions.items() if len(images) > 1)
    first, last = [lesion for lesion in lesions if lesion != middle][:2]
    for lesion, copy in zip((first, last), lesions[middle], strict=False):
        shutil.copyfile(source / ISIC_INPUT / f"{lesions[lesion][0]}.jpg", source / ISIC_INPUT / f"{copy}.jpg")
    [folder] = prepare("isic2018", source, source.parent / "out", group_by="lesion", allow_incomplete=True)
    group_of = {Path(row["file"]).stem: row["group"] for row in read_rows(folder)}
    joined = lesions[first] + lesions[middle] + lesions[last]
    assert {group_of[image] for image in joined} == {min(first, middle, last)}


def test_duplicate_of_another_class_is_found(damaged):
    source = damaged("kvasir")
    esophagitis, polyp = (next((source / "kvasir-dataset" / label).iterdir()) for label in ("esophagitis", "polyps"))
    shutil.copyfile(esophagitis, polyp)
    folder = check_refused_then_left_out(
        "kvasir", source, "contradictory-labels", f"esophagitis/{esophagitis.name} = polyps/{polyp.name}"
    )
    assert not {esophagitis.name, polyp.name} & names(folder)


def add_member(path: Path, name: str, mode: int = 0) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, encode(Image.new("RGB", (20, 20)), ".jpg"))


@pytest.mark.parametrize(
    "name, mode",
    [
        ("kvasir-dataset/polyps/../../../evil.jpg", 0),
        ("/tmp/evil.jpg", 0),
        ("C:/evil.jpg", 0),
        ("kvasir-dataset\\polyps\\..\\..\\..\\evil.jpg", 0),
        ("kvasir-dataset/polyps/evil.jpg", stat.S_IFLNK | 0o777),
        ("kvasir-dataset/polyps/evil.jpg", stat.S_IFIFO | 0o666),
        ("", 0),
    ],
)
def test_member_that_would_land_outside_is_found(name, mode, damaged):
    source = damaged("kvasir", True)
    add_member(source / "kvasir-dataset.zip", name, mode)
    folder = check_refused_then_left_out("kvasir", source, "unsafe-member", name)
    assert "evil.jpg" not in names(folder) and not list(source.parent.rglob("*evil*"))


def test_member_that_claims_to_be_huge_is_not_read(damaged):
    source = damaged("kvasir", True)
    path = source / "kvasir-dataset.zip"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(".jpg"))
    entry = content.index(b"PK\1\2", archive.start_dir + 46)
    assert content[entry + 46 :].startswith(info.filename.encode())
    path.write_bytes(content[: entry + 24] + (2**31).to_bytes(4, "little") + content[entry + 28 :])
    check_refused_then_left_out("kvasir", source, "unsafe-member", info.filename)


def test_link_in_a_folder_is_found(damaged):
    source = damaged("kvasir")
    (source / "kvasir-dataset/polyps/evil.jpg").symlink_to(Path(__file__))
    folder = check_refused_then_left_out("kvasir", source, "unsafe-member", "polyps/evil.jpg")
    assert "evil.jpg" not in names(folder)


def test_member_that_comes_twice_is_found(damaged):
    source = damaged("kvasir", True)
    with zipfile.ZipFile(source / "kvasir-dataset.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".jpg"))
    with pytest.warns(UserWarning, match="Duplicate name"):
        add_member(source / "kvasir-dataset.zip", name)
    folder = check_refused_then_left_out("kvasir", source, "repeated-member", Path(name).name)
    assert Path(name).name not in names(folder)


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda row: row.replace("1.0", "0.0"), "invalid-label"),
        (lambda row: row.replace("0.0", "1.0", 1), "invalid-label"),
        (lambda row: row.replace("1.0", "0.7"), "invalid-label"),
        (lambda row: row.rsplit(",", 3)[0], "invalid-label"),
        (lambda row: f"{row}\n{row}", "repeated-label"),
        (lambda row: f"{row.replace('1.0', '0.0')}\n{row}", "repeated-label"),
        (lambda row: "", "image-without-label"),
    ],
    ids=["none", "two", "no one", "short", "repeated", "corrected", "deleted"],
)
def test_row_of_the_ground_truth_that_is_no_label_is_found(change, kind, damaged):
    source = damaged("isic2018")
    path = source / ISIC_TRUTH / f"{ISIC_TRUTH}.csv"
    rows = path.read_text().splitlines()
    rows[5] = change(rows[5])
    path.write_text("\n".join(rows))
    folder = check_refused_then_left_out("isic2018", source, kind, "ISIC_0024310")
    assert "ISIC_0024310.jpg" not in names(folder)


def test_image_without_lesion_is_found(damaged):
    source = damaged("isic2018")
    path = source / f"{ISIC_LESIONS}.csv"
    path.write_text("\n".join(row for row in path.read_text().splitlines() if "ISIC_0024310" not in row))
    folder = check_refused_then_left_out(
        "isic2018", source, "image-without-lesion", "ISIC_0024310", group_by="lesion", val_share=0.3
    )
    assert "ISIC_0024310.jpg" not in names(folder)


def test_name_in_two_lists_is_found(damaged):
    source = damaged("covid19ct")
    train, val = (source / f"Data-split/COVID/{split}CT_COVID.txt" for split in ("train", "val"))
    name = train.read_text().splitlines()[0]
    val.write_text(val.read_text() + name + "\n")
    folder = check_refused_then_left_out("covid19ct", source, "several-splits", name)
    assert [row["split"] for row in read_rows(folder) if row["file"].endswith(f"/{name}")] == ["val"]


def test_all_findings_come_in_one_report(damaged):
    source = damaged("isic2018", True)
    with zipfile.ZipFile(source / f"{ISIC_INPUT}.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{ISIC_INPUT}/ISIC_0024306.jpg"] = b"none"
    del members[f"{ISIC_INPUT}/ISIC_0024307.jpg"]
    members[f"{ISIC_INPUT}/ISIC_0000001.jpg"] = members[f"{ISIC_INPUT}/ISIC_0024308.jpg"]
    members["../evil.jpg"] = b""
    write_zip(source / f"{ISIC_INPUT}.zip", members)
    with pytest.raises(ValueError) as error:
        prepare("isic2018", source, source.parent / "out")
    for words in (
        "unsafe-member",
        "../evil.jpg",
        "unreadable-image",
        "ISIC_0024306.jpg",
        "label-without-image",
        "ISIC_0024307.jpg",
        "image-without-label",
        "ISIC_0000001.jpg",
        "count",
        "NV: 24 of 6,705",
    ):
        assert words in str(error.value)


# What is let pass with a remark


@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "unpacked"])
def test_what_train_py_would_see_otherwise_is_written_upright_in_8_bits(zipped, damaged, tmp_path):
    source = damaged("kvasir")
    folder = source / "kvasir-dataset" / "polyps"
    files = sorted(folder.iterdir())[:4]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(files[0], exif=exif, quality=95)
    with Image.open(files[0]) as image:
        expected = [np.rot90(image, -1)]
    deep = np.linspace(1000, 4000, 2400).reshape(40, 60).astype(np.uint16)
    with files[1].open("wb") as f:
        Image.fromarray(deep).save(f, "PNG")
    expected.append(np.rint((deep - 1000.0) / 3000 * 255))
    write_dicom(files[2], deep, WindowCenter=2500, WindowWidth=1000)
    expected.append(np.asarray(open_image(files[2])))
    with files[3].open("wb") as f:
        Image.fromarray((deep % 256).astype(np.uint16)).save(f, "PNG")
    kept = files[3].read_bytes()
    if zipped:
        members = {str(p.relative_to(source)): p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
        shutil.rmtree(source / "kvasir-dataset")
        write_zip(source / "kvasir-dataset.zip", members)

    for out in prepare("kvasir", source, tmp_path / "out", allow_incomplete=True):
        check_folder(out)
        found = findings(out)
        assert [found[kind] for kind in ("turned", "depth", "dicom")] == [[f"polyps/{f.name}"] for f in files[:3]]
        severities = {f["kind"]: f["severity"] for f in read_dataset(out)["findings"]}
        assert {severities[kind] for kind in ("turned", "depth", "dicom")} == {"remark"}
        paths = {path.name: path for path in out.rglob("polyps/*")}
        for file, values in zip(files, expected, strict=False):
            written = paths[f"{file.name}.png"]
            with Image.open(written) as image:
                assert image.format == "PNG" and image.mode in ("L", "RGB") and not image.getexif()
                assert np.abs(np.asarray(image, float) - values).max() <= 1
            open_image(written, "RGB")
        assert paths[files[3].name].read_bytes() == kept


def test_other_suffix_than_listed_is_remarked(damaged):
    source = damaged("covid19ct")
    image = source / "Images-processed/CT_COVID/Hellwan case 1.jpg"
    image.rename(image.with_suffix(".jpeg"))
    [folder] = prepare("covid19ct", source, source.parent / "out", allow_incomplete=True)
    assert findings(folder)["other-suffix"] == ["CT_COVID/Hellwan case 1.jpg"]
    assert "Hellwan case 1.jpeg" in names(folder) and "label-without-image" not in findings(folder)


def test_archive_beside_its_folder_is_remarked(damaged, pristine):
    source = damaged("kvasir")
    shutil.copy(pristine("kvasir") / "kvasir-dataset.zip", source)
    (source / "kvasir-dataset/notes.txt").write_text("mine")
    (source / "kvasir-dataset/polyps/Thumbs.db").write_text("Windows")
    folder = prepare("kvasir", source, source.parent / "out", allow_incomplete=True)[0]
    assert findings(folder).keys() == {"two-forms", "surplus-file", "count"}
    assert findings(folder)["surplus-file"] == ["notes.txt"]


# What cannot go on


@pytest.mark.parametrize(
    "tag, gone, options, words",
    [
        ("isic2018", f"{ISIC_INPUT}.zip", {}, f"lacks {ISIC_INPUT}: expected"),
        ("isic2018", f"{ISIC_TRUTH}.zip", {}, f"lacks {ISIC_TRUTH}: expected"),
        ("isic2018", f"{ISIC_LESIONS}.csv", dict(group_by="lesion"), f"lacks {ISIC_LESIONS}: expected"),
        ("covid19ct", "Images-processed", {}, "lacks CT_COVID, CT_NonCOVID: expected"),
        ("covid19ct", "Data-split/NonCOVID/valCT_NonCOVID.txt", {}, "lacks valCT_NonCOVID.txt: expected"),
        ("kvasir", "kvasir-dataset.zip", {}, "lacks kvasir-dataset: expected"),
    ],
)
def test_missing_part_is_named(tag, gone, options, words, damaged):
    source = damaged(tag, True)
    path = source / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=words):
        prepare(tag, source, source.parent / "out", allow_incomplete=True, **options)
    assert not (source.parent / "out").exists()


def test_paper_split_needs_no_lists(damaged):
    source = damaged("covid19ct", True)
    shutil.rmtree(source / "Data-split")
    check_folder(prepare("covid19ct", source, source.parent / "out", split="paper", allow_incomplete=True)[0])


def test_archive_cut_short_is_named(damaged):
    source = damaged("kvasir", True)
    path = source / "kvasir-dataset.zip"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="kvasir-dataset.zip is no whole zip archive.*download it again"):
        prepare("kvasir", source, source.parent / "out", allow_incomplete=True)


def test_table_of_other_columns_is_named(damaged):
    source = damaged("isic2018")
    path = source / ISIC_TRUTH / f"{ISIC_TRUTH}.csv"
    path.write_text(path.read_text().replace("VASC", "UNK"))
    with pytest.raises(ValueError, match="has columns image, MEL, .*, UNK: lacks VASC"):
        prepare("isic2018", source, source.parent / "out", allow_incomplete=True)


@pytest.mark.parametrize("fault", ["images in capitals", "names with their ending"])
def test_report_is_shown_where_too_few_images_are_left(fault, damaged):
    source = damaged("isic2018")
    truth = source / ISIC_TRUTH / f"{ISIC_TRUTH}.csv"
    if fault == "images in capitals":
        for image in list((source / ISIC_INPUT).glob("*.jpg")):
            image.rename(image.with_suffix(".JPG"))
        kind, named = "image-without-label", "ISIC_0024306.JPG"
    else:
        truth.write_text("\n".join(row.replace(",", ".jpg,", 1) for row in truth.read_text().splitlines()[1:]))
        truth.write_text(f"image,{','.join(ISIC_COLUMNS)}\n{truth.read_text()}")
        kind, named = "label-without-image", "ISIC_0024306.jpg.jpg"
    with pytest.raises(ValueError, match="train would have no image of AKIEC, .*: too few sound images") as error:
        prepare("isic2018", source, source.parent / "out", allow_incomplete=True)
    assert f"{kind}: " in str(error.value) and named in str(error.value)


def test_split_without_a_class_is_refused(damaged):
    source = damaged("kvasir")
    shutil.rmtree(source / "kvasir-dataset/polyps")
    with pytest.raises(ValueError, match="would have no image of polyps"):
        prepare("kvasir", source, source.parent / "out", allow_incomplete=True)
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize(
    "tag, options, words",
    [
        ("imagenet", {}, "dataset 'imagenet' is not known: expected one of isic2018, covid19ct, kvasir"),
        ("kvasir", dict(group_by="lesion"), "group_by 'lesion' is for isic2018 only"),
        ("isic2018", dict(group_by="eye"), "group_by 'eye' is not known: expected 'lesion' or 'patient'"),
        ("isic2018", dict(group_by="patient"), "group_by 'patient' is for covid19ct only"),
        ("covid19ct", dict(group_by="patient", split="official"), "group_by 'patient' is for the split 'paper'"),
        ("kvasir", dict(test="official"), "test 'official' is for isic2018 only"),
        ("isic2018", dict(split="paper"), "split 'paper' is for covid19ct only"),
        ("covid19ct", dict(split="random"), "split 'random' is not known"),
        ("covid19ct", dict(val_share=0.1), "val_share 0.1 is not for covid19ct"),
        ("kvasir", dict(val_share=1.0), "val_share 1.0 is not valid"),
    ],
)
def test_option_that_does_not_fit_is_named(tag, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare(tag, tmp_path, tmp_path / "out", **options)


# What is written, or not


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_interrupted_run_leaves_nothing_that_looks_whole(error, again, pristine, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if again:
        prepare("isic2018", pristine("isic2018"), out, seed=1, allow_incomplete=True)
        rows = read_rows(out)
    written = []

    def interrupt(original: Path, path: Path) -> bool:
        written.append(path)
        if len(written) == 40:
            raise error
        return False

    monkeypatch.setattr(preparation, "_link", interrupt)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        prepare("isic2018", pristine("isic2018", False), out, allow_incomplete=True)
    assert len(written) == 40 and not any(path.is_relative_to(out) for path in written)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if again else [])
    if again:
        check_folder(out)
        assert read_rows(out) == rows


def test_earlier_dataset_stays_if_the_new_one_cannot_take_its_place(pristine, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare("covid19ct", pristine("covid19ct"), out, split="paper", seed=1, allow_incomplete=True)
    rows = read_rows(out)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        prepare("covid19ct", pristine("covid19ct"), out, split="paper", seed=2, allow_incomplete=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_folder(out)
    assert read_rows(out) == rows


def test_dataset_json_is_written_last(pristine, tmp_path, monkeypatch):
    seen = []

    def look(path: Path, content: dict):
        seen.append({p.name for p in path.parent.iterdir()})
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "write_json", look)
    with pytest.raises(KeyboardInterrupt):
        prepare("covid19ct", pristine("covid19ct"), tmp_path / "out", allow_incomplete=True)
    assert seen == [{"train", "val", "test", "splits.csv"}]


def test_interrupt_during_the_checks_writes_nothing(pristine, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "tqdm", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare("isic2018", pristine("isic2018"), tmp_path / "out", allow_incomplete=True)
    assert list(tmp_path.iterdir()) == []


def test_image_that_changes_after_its_check_is_not_written(damaged, monkeypatch):
    source = damaged("covid19ct")
    check_counts = preparation._check_counts

    def change(*args):
        check_counts(*args)
        (source / "Images-processed/CT_COVID/Hellwan case 1.jpg").write_bytes(b"other")

    monkeypatch.setattr(preparation, "_check_counts", change)
    monkeypatch.setattr(preparation, "_link", lambda original, path: False)
    with pytest.raises(OSError, match="CT_COVID/Hellwan case 1.jpg changed while it was prepared"):
        prepare("covid19ct", source, source.parent / "out", allow_incomplete=True)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("tag", ["isic2018", "kvasir"])
def test_prepared_dataset_is_replaced_by_the_same_and_by_no_other(tag, pristine, tmp_path):
    out = tmp_path / "out"
    folders = prepare(tag, pristine(tag), out, seed=1, allow_incomplete=True)
    rows = read_rows(folders[0])
    prepare(tag, pristine(tag), out, seed=2, val_share=0.3, allow_incomplete=True)
    assert read_rows(folders[0]) != rows and read_dataset(folders[0])["seed"] == 2
    for folder in folders:
        check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    with pytest.raises(FileExistsError, match="give a new folder"):
        prepare("covid19ct", pristine("covid19ct"), out, allow_incomplete=True)
    assert read_dataset(folders[0])["seed"] == 2


@pytest.mark.parametrize("when", ["before", "while it ran"])
@pytest.mark.parametrize("kept", ["thesis.tex", "{fold}/runs/model_best.pth.tar", "{fold}/train/{label}/mine.png"])
@pytest.mark.parametrize("tag", ["covid19ct", "kvasir"])
def test_folder_in_which_a_user_keeps_something_is_not_replaced(tag, kept, when, pristine, tmp_path, monkeypatch):
    out = tmp_path / "out"
    [folder, *_] = prepare(tag, pristine(tag), out, allow_incomplete=True)
    file = out / kept.format(fold=folder.relative_to(out), label=list(DATASETS[tag].labels)[0])
    rows = read_rows(folder)

    def keep():
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")

    if when == "before":
        keep()
        monkeypatch.setattr(preparation, "_check_images", None)  # refused before anything is read
    else:
        write_images = preparation._write_images
        monkeypatch.setattr(preparation, "_write_images", lambda *args: (write_images(*args), keep()))
    match = f"{out} holds other files, {file.relative_to(out)} among them: give a new folder"
    with pytest.raises(FileExistsError, match=match):
        prepare(tag, pristine(tag), out, allow_incomplete=True)
    assert file.read_text() == "mine" and read_rows(folder) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    file.unlink()
    check_folder(folder)


def test_folder_without_its_tables_is_not_replaced(pristine, tmp_path):
    for damage in (
        lambda path: path.unlink(),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff"),
    ):
        for table in ("splits.csv", "dataset.json"):
            [folder] = prepare("covid19ct", pristine("covid19ct"), tmp_path / "out", allow_incomplete=True)
            damage(folder / table)
            with pytest.raises(FileExistsError, match="holds other files"):
                prepare("covid19ct", pristine("covid19ct"), folder, allow_incomplete=True)
            shutil.rmtree(folder)


def test_out_that_cannot_be_is_named(damaged, tmp_path):
    source = damaged("kvasir", True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        prepare("kvasir", source, tmp_path / "file", allow_incomplete=True)
    with pytest.raises(FileExistsError, match="holds the source"):
        prepare("kvasir", source, source, allow_incomplete=True)
    with pytest.raises(FileNotFoundError, match="source .* does not exist"):
        prepare("kvasir", tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "out"):
        for folder in prepare("kvasir", source, out, allow_incomplete=True):
            check_folder(folder)
