"""The datasets of the paper, as facts; folders of images, and the files that name their classes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from .errors import first_line

__all__ = ["DATASETS", "Dataset", "ImageFolder", "find_images", "read_class_map", "read_description"]

_LARGEST_CLASS_MAP = 1 << 20  # bytes; ImageNet's 21,841 classes take 240,000


@dataclass(frozen=True)
class Dataset:
    """A dataset of the paper that weights are published for.

    Attributes:
        name: Name to show.
        description: What it holds, in a sentence.
        labels: Description of each class by its short name, in the order of the class indices: that of the short names
            sorted, in which timm reads a folder of them.
        license: The Hub's identifier of the licence.
        license_note: What the licence says, or why there is none to name.
        url: Where it comes from.
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


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, each in a folder that names its class.

    Attributes:
        samples: Path and class of each image, in timm's order.
        classes: The names of the classes that have images, in timm's order.
        left_out: Images in formats that timm's reader leaves out.
        repeated: Files and folders that links lead to again, each of which counts once.
    """

    samples: list[tuple[str, str]]
    classes: list[str]
    left_out: list[str]
    repeated: list[str]


def find_images(folder: str | Path) -> ImageFolder:
    """Find the images in a folder as timm's reader does, but each of them once, wherever links lead.

    The class of an image is the name of the folder that it lies in, however deep that is; none where it lies in
    `folder` itself.

    Raises:
        OSError: If a folder cannot be read.
    """
    from PIL import Image

    formats, others = get_img_extensions(as_set=True), {*Image.registered_extensions(), ".dcm", ".dicom"}
    root = str(folder)
    samples, left_out, repeated = [], [], []
    seen = {os.path.realpath(root)}
    level = [root]
    while level:  # level by level and links last, so that what is reached twice stands where it lies
        entries = [entry for inside in level for entry in os.scandir(inside)]
        level = []
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), natural_key(entry.path))):
            inside, (_, ending) = os.path.dirname(entry.path), os.path.splitext(entry.name)
            label = "" if inside == root else os.path.basename(inside)
            if entry.is_dir():
                place, found = os.path.realpath(entry.path), level
            elif ending.lower() in formats:
                place, found = (os.path.realpath(entry.path), label), samples
            else:
                if ending.lower() in others:
                    left_out.append(entry.path)
                continue
            if place in seen:
                found = repeated
            seen.add(place)
            found.append((entry.path, label) if found is samples else entry.path)
    samples.sort(key=lambda sample: natural_key(sample[0]))
    return ImageFolder(samples, sorted({label for _, label in samples}, key=natural_key), left_out, repeated)


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


def _check_description(description) -> None:
    if not isinstance(description, dict):
        raise ValueError(f"it holds a {type(description).__name__}, expected an object")
    classes = description.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"its classes are {classes!r:.80}, expected a list of names")
    if len(set(classes)) < len(classes):
        raise ValueError(f"its classes are {classes!r:.80}, expected different names")
    for key in ("name", "title"):
        if not isinstance(description.get(key), str | None):
            raise ValueError(f"its {key} is {description[key]!r:.80}, expected a string")


def read_class_map(path: str | Path) -> list[str]:
    """The names of the classes in a class map of train.py: a text file with a name on each line, in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text file, or a name is missing or stands there twice.
    """
    path = Path(path)
    if path.suffix.lower() != ".txt":
        raise ValueError(f"class map {path} must be a text file with the name of a class on each line, named .txt")
    if not path.is_file():
        raise FileNotFoundError(f"class map {path} does not exist or is not a file")
    if path.stat().st_size > _LARGEST_CLASS_MAP:
        raise ValueError(f"class map {path} has {path.stat().st_size:,} bytes, too many for a list of classes")
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"class map {path} is no text in UTF-8") from e
    names = [line.strip() for line in lines]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = "names a class again" if name else "is empty"
            raise ValueError(f"class map {path}: line {number + 1} {fault}, expected another class on each line")
    return names
