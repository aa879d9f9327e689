"""Datasets that weights are published for, as facts: those of the paper, and what `prepare` wrote on a folder."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from .errors import first_line

__all__ = ["DATASETS", "Dataset", "check_name", "name_in_splits", "read_dataset", "read_description", "read_splits"]

# The Hub's identifiers of licences, https://huggingface.co/docs/hub/repositories-licenses, but for those of models.
_HUB_LICENSES = set(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl "
    "gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 "
    "other pddl postgresql unknown unlicense wtfpl zlib".split()
)

# What dataset.json says in words.
_FACTS = ("title", "description", "source", "license", "license_note", "citation")


@dataclass(frozen=True)
class Dataset:
    """A dataset that weights are published for.

    Attributes:
        name: Name to show.
        description: What it holds, in a sentence.
        labels: Description of each class by its short name, in the order of the class indices: that of the short names
            sorted, in which timm reads a folder of them.
        license: The Hub's identifier of the licence.
        license_note: What the licence says, or why there is none to name.
        url: Where it comes from; empty where that is not known, as the citation.
        citation: What its authors ask to cite.
    """

    name: str
    description: str
    labels: dict[str, str]
    license: str
    license_note: str
    url: str
    citation: str

    @property
    def num_classes(self) -> int:
        return len(self.labels)


# By tag; the first is the default of the registered models.
DATASETS = {
    "isic2018": Dataset(
        name="ISIC 2018",
        description="Task 3 of the ISIC 2018 challenge: 10,015 dermoscopic images of skin lesions (HAM10000).",
        labels={
            "AKIEC": "actinic keratosis or intraepithelial carcinoma",
            "BCC": "basal cell carcinoma",
            "BKL": "benign keratosis",
            "DF": "dermatofibroma",
            "MEL": "melanoma",
            "NV": "melanocytic nevus",
            "VASC": "vascular lesion",
        },
        license="cc-by-nc-4.0",
        license_note="CC BY-NC 4.0",
        url="https://challenge.isic-archive.com/data/#2018",
        citation="Codella et al., Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368; Tschandl et "
        "al., The HAM10000 dataset, Scientific Data 5, 180161 (2018)",
    ),
    "covid19ct": Dataset(
        name="COVID19-CT",
        description="746 slices of chest CT scans, 349 of them of COVID-19 patients, collected from publications.",
        labels={"CT_COVID": "COVID-19", "CT_NonCOVID": "no COVID-19"},
        license="unknown",
        license_note="not stated by its authors as far as we could find; the images come from publications with "
        "licences of their own",
        url="https://github.com/UCSD-AI4H/COVID-CT",
        citation="He et al., Sample-Efficient Deep Learning for COVID-19 Diagnosis Based on CT Scans, medRxiv (2020); "
        "Yang et al., COVID-CT-Dataset, arXiv:2003.13865",
    ),
    "kvasir": Dataset(
        name="Kvasir",
        description="4,000 endoscopic images of the gastrointestinal tract, 500 a class (version 1).",
        labels={
            "dyed-lifted-polyps": "dyed and lifted polyps",
            "dyed-resection-margins": "dyed resection margins",
            "esophagitis": "esophagitis",
            "normal-cecum": "normal cecum",
            "normal-pylorus": "normal pylorus",
            "normal-z-line": "normal Z-line",
            "polyps": "polyps",
            "ulcerative-colitis": "ulcerative colitis",
        },
        license="other",
        license_note="its own terms: research and education only, other uses by written permission",
        url="https://datasets.simula.no/kvasir",
        citation="Pogorelov et al., KVASIR: A Multi-Class Image Dataset for Computer Aided Gastrointestinal Disease "
        "Detection, ACM MMSys (2017)",
    ),
}


def read_description(data_dir: str | Path) -> dict:
    """What `prepare` wrote on a dataset in its dataset.json; nothing of a folder that it did not make.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the file is not as prepare writes it.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir {data_dir} does not exist or is not a folder")
    path = data_dir / "dataset.json"
    if not path.exists():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        _check_description(description)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not as prepare writes it ({first_line(e)}): write it again, or remove it") from e
    return description


def read_splits(data_dir: str | Path) -> dict[str, dict[str, str]]:
    """What `prepare` wrote on each image in splits.csv: all columns, by its path in the folder; nothing without it.

    Raises:
        ValueError: If the file is not as prepare writes it.
        OSError: If it cannot be read.
    """
    path = Path(data_dir) / "splits.csv"
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            header, rows = reader.fieldnames or [], list(reader)
        _check_splits(header, rows)
    except (UnicodeDecodeError, ValueError, csv.Error) as e:
        raise ValueError(f"{path} is not as prepare writes it ({first_line(e)}): write it again, or remove it") from e
    return {row["file"]: row for row in rows}


def name_in_splits(file: str | Path) -> str:
    """What splits.csv calls an image, given its path in the dataset: names that are not UTF-8 stand there escaped."""
    return PurePath(file).as_posix().encode(errors="backslashreplace").decode()


def read_dataset(data_dir: str | Path) -> tuple[str, Dataset]:
    """The short name of a dataset that `prepare` wrote, and its facts.

    A licence that is none of the Hub's identifiers becomes `other`, and stands in the note.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no dataset.json, or one that is not as prepare writes it.
    """
    description = read_description(data_dir)
    if not description:
        raise ValueError(f"data_dir {data_dir} has no dataset.json, which says what it is: expected what prepare wrote")
    try:
        name = check_name(description.get("name") or "")
    except ValueError as e:
        raise ValueError(f"{Path(data_dir) / 'dataset.json'}: its {e}") from None
    facts = {key: description.get(key) or "" for key in _FACTS}
    license, notes = facts["license"].lower() or "unknown", [facts["license_note"]]
    if license not in _HUB_LICENSES:
        license, notes = "other", dict.fromkeys([facts["license"], *notes])  # prepare images writes it in both
    meanings = description.get("class_descriptions", {})
    return name, Dataset(
        name=facts["title"] or name,
        description=facts["description"],
        labels={label: meanings.get(label) or label for label in description["classes"]},
        license=license,
        license_note="; ".join(filter(None, notes)) or ("not stated" if license == "unknown" else license),
        url=facts["source"],
        citation=facts["citation"],
    )


def check_name(name: str) -> str:
    """The short name of a dataset, if it can stand in the name of a repository and of a folder.

    Raises:
        ValueError: If it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r:.80} is not valid: expected letters, digits, and -, _ or . between them")
    return name


def _check_splits(header: list[str], rows: list[dict]) -> None:
    if "file" not in header or len(set(header)) < len(header):
        raise ValueError(f"its columns are {header!r:.80}, expected different ones with file among them")
    files = set()
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"its row {number} has more or fewer cells than the header")
        if row["file"] in files:
            raise ValueError(f"it has {row['file']!r:.80} twice")
        files.add(row["file"])


def _check_description(description) -> None:
    if not isinstance(description, dict):
        raise ValueError(f"it holds a {type(description).__name__}, expected an object")
    classes = description.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"its classes are {classes!r:.80}, expected a list of names")
    if len(set(classes)) < len(classes):
        raise ValueError(f"its classes are {classes!r:.80}, expected different names")
    for key in ("name", *_FACTS):
        if not isinstance(description.get(key), str | None):
            raise ValueError(f"its {key} is {description[key]!r:.80}, expected a string")
    meanings = description.get("class_descriptions", {})
    if not isinstance(meanings, dict) or not all(isinstance(meaning, str) for meaning in meanings.values()):
        raise ValueError(f"its class_descriptions are {meanings!r:.80}, expected a string for each class")
    counts = description.get("counts", {})
    of_splits = counts.values() if isinstance(counts, dict) else [None]
    if not all(isinstance(s, dict) and all(type(n) is int and n >= 0 for n in s.values()) for s in of_splits):
        raise ValueError(f"its counts are {counts!r:.80}, expected for each split the number of images of each class")
    shared = description.get("shared_with_train", {"unit": ""})
    words = isinstance(shared, dict) and isinstance(shared.get("unit"), str)
    if not words or not all(type(n) is int and n >= 0 for key, n in shared.items() if key != "unit"):
        raise ValueError(f"its shared_with_train is {shared!r:.80}, expected a unit, and numbers of images by split")
