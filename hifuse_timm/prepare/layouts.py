"""What the providers of the paper's datasets publish: which images there are, of which class, in which split.

Section 4.1 of the paper has the numbers of images; those of the official lists of COVID19-CT are the provider's.
"""

from collections import defaultdict
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..datasets import DATASETS
from .archives import Part, SourceFile, find_part, is_image
from .inventory import SPLITS, Inventory, Sample
from .names import NameFinder
from .tables import Table, read_table

__all__ = ["COUNTS", "OFFICIAL_COUNTS", "read_layout"]

# Images a class.
COUNTS = {
    "isic2018": {"AKIEC": 327, "BCC": 514, "BKL": 1099, "DF": 115, "MEL": 1113, "NV": 6705, "VASC": 142},
    "covid19ct": {"CT_COVID": 349, "CT_NonCOVID": 397},
    "kvasir": dict.fromkeys(DATASETS["kvasir"].labels, 500),
    "kvasir-v2": dict.fromkeys(DATASETS["kvasir"].labels, 1000),
}
# Of COVID19-CT, as (train, val, test).
OFFICIAL_COUNTS = {"CT_COVID": (191, 60, 98), "CT_NonCOVID": (234, 58, 105)}
_ISIC_TESTED = 1512  # of the official test set

_ISIC_IMAGES = "ISIC2018_Task3_Training_Input"
_ISIC_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
_ISIC_LESIONS = "ISIC2018_Task3_Training_LesionGroupings"
_ISIC_TEXTS = {"ATTRIBUTION.txt", "LICENSE.txt"}
_ISIC_TEST_IMAGES = ("ISIC2018_Task3_Test_Input", "ISIC2018_Task3_Test_Images")  # of ISIC, of the Harvard Dataverse
_ISIC_TEST_TRUTH = "ISIC2018_Task3_Test_GroundTruth"
# The same images as Dataverse and Kaggle have them.
_HAM_IMAGES = ("HAM10000_images_part_1", "HAM10000_images_part_2")
_HAM_TABLE = "HAM10000_metadata"

_KVASIR_PARTS = {"kvasir": "kvasir-dataset", "kvasir-v2": "kvasir-dataset-v2"}

# By class, where the provider of COVID19-CT names the patients: the table, the columns of the image and the patient.
_COVID_PATIENTS = {
    "CT_COVID": ("COVID-CT-MetaInfo.xlsx", "File name", "Patient ID"),
    "CT_NonCOVID": ("NonCOVID-CT-MetaInfo.csv", "image name", "patient id"),
}


def read_layout(
    tag: str, source: Path, stack: ExitStack, *, group_by: str | None, split: str | None, test: str | None
) -> Inventory:
    """List the images of a dataset, without opening any.

    Args:
        tag: The dataset.
        source: The provider's archives or folders.
        stack: Takes archives that stay open for reading.
        group_by: `lesion` to group the images of ISIC 2018, `patient` those of COVID19-CT.
        split: `official` to read the provider's lists of COVID19-CT.
        test: `official` to read the test set of ISIC 2018.

    Raises:
        FileNotFoundError: If a part is missing; names all that are.
        ValueError: If a part is damaged or of another form.
    """
    if tag == "isic2018":
        return _read_isic2018(source, stack, group_by == "lesion", test == "official")
    if tag == "covid19ct":
        return _read_covid19ct(source, stack, split == "official", group_by == "patient")
    return _read_kvasir(source, stack)


def _read_isic2018(source: Path, stack: ExitStack, by_lesion: bool, official_test: bool) -> Inventory:
    ham = _find_table(source, _HAM_TABLE, stack)
    images = {_ISIC_IMAGES: find_part(source, _ISIC_IMAGES, stack)}
    if images[_ISIC_IMAGES] is None:
        in_halves = {name: find_part(source, name, stack) for name in _HAM_IMAGES}
        images = in_halves if any(in_halves.values()) else images
    truth = _find_table(source, _ISIC_TRUTH, stack)
    truth = {_HAM_TABLE if truth is None and (ham or _HAM_IMAGES[0] in images) else _ISIC_TRUTH: truth or ham}
    lesions = _find_table(source, _ISIC_LESIONS, stack)
    lesions = {_ISIC_LESIONS if lesions or not ham else _HAM_TABLE: lesions or ham}
    test_images, test_truth = {}, {}
    if official_test:
        found = {name: find_part(source, name, stack) for name in _ISIC_TEST_IMAGES}
        name = next((name for name, part in found.items() if part), _ISIC_TEST_IMAGES[0])
        test_images = {name: found[name]}
        test_truth = {_ISIC_TEST_TRUTH: _find_table(source, _ISIC_TEST_TRUTH, stack)}
    needed = images | truth | (lesions if by_lesion else {}) | test_images | test_truth
    _check_all_found(source, needed)

    data = DATASETS["isic2018"]
    inventory = Inventory(data, "isic2018", counts=dict(COUNTS["isic2018"]))
    inventory.add(*needed.values())
    lesion_of = {}
    [(name, part)] = lesions.items()
    if part is not None:
        table = _read_table(part, name)
        image = "image" if name == _ISIC_LESIONS else "image_id"
        table.check_columns(image, "lesion_id")
        lesion_of = {row[image]: row["lesion_id"] for row in table.rows if row["lesion_id"]}
        inventory.unit = "lesion"
    _add_isic_images(inventory, images, truth, lesion_of, by_lesion, "train" if official_test else None)
    if official_test:
        _add_isic_images(inventory, test_images, test_truth, lesion_of, False, "test")
        inventory.counts = {f"train/{label}": count for label, count in inventory.counts.items()}
        inventory.counts["test"] = _ISIC_TESTED
    return inventory


def _add_isic_images(
    inventory: Inventory,
    images: dict[str, Part],
    truth: dict[str, Part],
    lesion_of: dict[str, str],
    by_lesion: bool,
    split: str | None,
) -> None:
    """Add the images that a ground truth names."""
    files = {path: file for part in images.values() for path, file in part.files.items()}
    twice = [path for path in files if sum(path in part.files for part in images.values()) > 1]
    inventory.report("repeated-image", "images that both parts hold: that of the second was taken", twice)
    [(name, part)] = truth.items()
    label_of, invalid, repeated = _read_isic_labels(_read_table(part, name))
    inventory.report("invalid-label", "rows of the ground truth that name no class, or several: left out", invalid)
    inventory.report("repeated-label", "images with several rows in the ground truth: left out", repeated)
    if by_lesion:
        without = label_of.keys() - lesion_of.keys()
        inventory.report("image-without-lesion", "images that the lesion groupings do not name: left out", without)

    for name in sorted(label_of.keys() - repeated):
        path, label, lesion = f"{name}.jpg", label_of[name], lesion_of.get(name)
        if path in files and (lesion or not by_lesion):
            group = lesion if by_lesion else f"{label}/{path}"
            inventory.samples.append(Sample(files[path], label, group, split, lesion))
    named = {f"{name}.jpg" for name in label_of.keys() | invalid}
    missing, surplus = named - set(files), set(files) - named - _ISIC_TEXTS
    inventory.report("label-without-image", "images that the ground truth names and that are missing", missing)
    _report_surplus(inventory, "image-without-label", surplus, "in no row of the ground truth")


def _read_isic_labels(table: Table) -> tuple[dict[str, str], set[str], set[str]]:
    """The class of each image, images without one, and those with several rows; HAM10000 has names, ISIC columns."""
    labels = list(DATASETS["isic2018"].labels)
    one_hot = "dx" not in table.header
    table.check_columns(*(["image", *labels] if one_hot else ["image_id", "dx"]))
    label_of, invalid, repeated = {}, set(), set()
    for row in table.rows:
        name = row["image" if one_hot else "image_id"]
        if one_hot:
            named = [label for label in labels if row[label] in ("1", "1.0")]
            named += [label for label in labels if row[label] not in ("0", "0.0", "1", "1.0")]
        else:
            named = [label for label in labels if label == row["dx"].upper()]
        if name in label_of or name in invalid:
            repeated.add(name)
        elif len(named) == 1 and (not one_hot or row[named[0]] in ("1", "1.0")):
            label_of[name] = named[0]
        else:
            invalid.add(name)
    return label_of, invalid, repeated


def _read_covid19ct(source: Path, stack: ExitStack, official: bool, by_patient: bool) -> Inventory:
    data = DATASETS["covid19ct"]
    parts = {label: find_part(source, label, stack, within=["Images-processed"]) for label in data.labels}
    lists = {}
    for label in data.labels if official else ():
        short = label.removeprefix("CT_")
        for split in SPLITS:
            name = f"{split}CT_{short}.txt"
            lists[name] = _find_file(source, name, [f"Data-split/{short}", short, "."])
    tables = {name: _find_file(source, name, ["."]) for name, _, _ in _COVID_PATIENTS.values()}
    if not by_patient and not all(tables.values()):
        tables = {}
    _check_all_found(source, parts | lists | tables)
    inventory = Inventory(data, "covid19ct", counts=dict(COUNTS["covid19ct"]), unit="patient" if tables else None)
    inventory.add(*parts.values(), *lists.values(), *tables.values())
    if official:
        for label, counts in OFFICIAL_COUNTS.items():
            inventory.counts |= {f"{split}/{label}": count for split, count in zip(SPLITS, counts, strict=True)}

    for label, part in parts.items():
        images = {path: file for path, file in part.files.items() if is_image(path) and len(file.path.parts) == 1}
        _report_surplus(inventory, "misplaced-image", set(part.files) - set(images), f"not directly in {label}")
        split_of = _read_covid_lists(inventory, label, lists, images) if official else dict.fromkeys(images)
        patient_of = _read_covid_patients(inventory, label, tables, images) if tables else {}
        for path, split in split_of.items():
            itself, patient = f"{label}/{path}", patient_of.get(path)
            group = patient if by_patient and patient else itself
            inventory.samples.append(Sample(images[path], label, group, split, patient))
    return inventory


def _read_covid_lists(
    inventory: Inventory, label: str, lists: dict[str, Part], images: dict[str, SourceFile]
) -> dict[str, str]:
    """The split of each image of a class, by the provider's lists."""
    listed = []
    for split in SPLITS:
        name = f"{split}CT_{label.removeprefix('CT_')}.txt"
        listed += [(line.strip(), split) for line in lists[name].read_text(name).splitlines() if line.strip()]
    unlisted = images.keys() - {name for name, _ in listed}
    splits_of, renamed, missing = defaultdict(list), [], []
    for name, split in listed:
        path = name if name in images else _find_other_suffix(name, unlisted)
        if path is None:
            missing.append(f"{label}/{name}")
            continue
        if path != name:
            renamed.append(f"{label}/{name}")
        splits_of[path].append(split)
    repeated = [f"{label}/{path}" for path, splits in splits_of.items() if len(set(splits)) > 1]
    surplus = [f"{label}/{path}" for path in images.keys() - splits_of.keys()]
    inventory.report("label-without-image", "images that a split list names and that are missing", missing)
    inventory.report("image-without-label", "images that no split list names: left out", surplus)
    message = "images that several split lists name: kept in the last of them (train, val, test)"
    inventory.report("several-splits", message, repeated)
    message = "listed names whose file has another suffix: that file was taken"
    inventory.report("other-suffix", message, renamed, error=False)
    return {path: max(splits, key=SPLITS.index) for path, splits in splits_of.items()}


def _read_covid_patients(
    inventory: Inventory, label: str, tables: dict[str, Part], images: dict[str, SourceFile]
) -> dict[str, str]:
    """The patient of each image of a class that the provider's table names; some names there have no ending."""
    name, image, patient = _COVID_PATIENTS[label]
    table = read_table(tables[name].files[name].read(), name)
    table.check_columns(image, patient)
    finder = NameFinder(images)
    patient_of, missing = {}, []
    for row in table.rows:
        found = finder.find(row[image])
        if len(found) == 1 and row[patient]:
            patient_of[found[0]] = row[patient]
        else:
            missing.append(f"{label}/{row[image]}")
    message = "rows of the tables of patients whose image is missing, or not the only one"
    inventory.report("patient-without-image", message, missing, error=False)
    without = [f"{label}/{path}" for path in images.keys() - patient_of.keys()]
    message = "images whose patient the tables do not name: each a group of its own"
    inventory.report("image-without-patient", message, without, error=False)
    return patient_of


def _read_kvasir(source: Path, stack: ExitStack) -> Inventory:
    data = DATASETS["kvasir"]
    parts = {tag: find_part(source, name, stack) for tag, name in _KVASIR_PARTS.items()}
    if all(parts.values()):
        raise ValueError(f"source {source} holds {' and '.join(_KVASIR_PARTS.values())}: give the folder of one")
    tag = "kvasir-v2" if parts["kvasir-v2"] else "kvasir"
    part = parts[tag]
    if part is None and any((source / label).is_dir() for label in data.labels):
        part = Part(source)
        for label in data.labels:
            folder = find_part(source, label, stack)
            if folder is not None:
                part.findings += folder.findings
                for file in folder.files.values():
                    inside = SourceFile(label / file.path, file.read, file.origin)
                    part.files[str(inside.path)] = inside
    _check_all_found(source, {_KVASIR_PARTS[tag]: part})
    if tag == "kvasir-v2":
        description = (
            data.description.replace("4,000", "8,000").replace("500", "1,000").replace("version 1", "version 2")
        )
        data = replace(data, name="Kvasir v2", description=description)
    inventory = Inventory(data, tag, counts=dict(COUNTS[tag]))
    inventory.add(part)
    surplus = set()
    for path, file in part.files.items():
        label = file.path.parts[0]
        if len(file.path.parts) == 2 and label in data.labels and is_image(path):
            inventory.samples.append(Sample(file, label, path))
        else:
            surplus.add(path)
    _report_surplus(inventory, "misplaced-image", surplus, "not directly in one of the eight folders of classes")
    return inventory


def _report_surplus(inventory: Inventory, kind: str, paths: set[str], where: str) -> None:
    """Add findings about files that the provider's form does not have."""
    images = {path for path in paths if is_image(path)}
    inventory.report(kind, f"images that are {where}: left out", images)
    message = "files that the provider does not publish here: left out"
    inventory.report("surplus-file", message, paths - images, error=False)


def _check_all_found(source: Path, parts: dict[str, Part | None]) -> None:
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise FileNotFoundError(
            f"source {source} lacks {', '.join(missing)}: expected each there by this name, "
            "unpacked or zipped as downloaded"
        )


def _find_file(source: Path, name: str, folders: list[str]) -> Part | None:
    """Find a single file in folders of the source, as a part."""
    for folder in folders:
        path = source / folder / name
        if path.is_file():
            return Part(path, {name: SourceFile(PurePosixPath(name), path.read_bytes, path)})
    return None


def _find_table(source: Path, name: str, stack: ExitStack) -> Part | None:
    """Find a table in the part of its name, or by itself; Dataverse hands some out with tabs."""
    part = find_part(source, name, stack)
    if part is not None and f"{name}.csv" in part.files:
        return part
    found = (_find_file(source, f"{name}{ending}", ["."]) for ending in (".csv", ".tab", ""))
    return next((part for part in found if part), None)


def _read_table(part: Part, name: str) -> Table:
    """Read the table of a part, in which that of its name may be one of several files."""
    file = f"{name}.csv" if f"{name}.csv" in part.files else next(iter(part.files))
    return read_table(part.read_bytes(file), file)


def _find_other_suffix(name: str, paths: Set[str]) -> str | None:
    """The only path of the same name but for the suffix, which the provider has changed for some images."""
    stem = PurePosixPath(name).stem
    same = [path for path in paths if PurePosixPath(path).stem == stem]
    return same[0] if len(same) == 1 else None
