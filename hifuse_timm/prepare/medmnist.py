"""MedMNIST's files: arrays of images and labels, with a split of their own."""

import errno
import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..datasets import Dataset
from ..errors import first_line, shorten
from .archives import SourceFile
from .inventory import SPLITS, Inventory
from .lists import Entry
from .own import add_samples
from .preparation import Plan, carry_out

__all__ = ["prepare_medmnist"]

_MOST_CLASSES = 1000  # of a file without names of classes

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
# Title and names of the classes, in the order of the labels.
_KNOWN = {
    "pathmnist": (
        "PathMNIST",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "dermamnist": (
        "DermaMNIST",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
    ),
    "octmnist": ("OCTMNIST", ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
    "pneumoniamnist": ("PneumoniaMNIST", ("normal", "pneumonia")),
    "retinamnist": ("RetinaMNIST", ("0", "1", "2", "3", "4")),
    "breastmnist": ("BreastMNIST", ("malignant", "normal or benign")),
    "bloodmnist": (
        "BloodMNIST",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocyte",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": (
        "TissueMNIST",
        (
            "collecting duct, connecting tubule",
            "distal convoluted tubule",
            "glomerular endothelial cells",
            "interstitial endothelial cells",
            "leukocytes",
            "podocytes",
            "proximal tubule segments",
            "thick ascending limb",
        ),
    ),
    "organamnist": ("OrganAMNIST", _ORGANS),
    "organcmnist": ("OrganCMNIST", _ORGANS),
    "organsmnist": ("OrganSMNIST", _ORGANS),
}


def prepare_medmnist(source: str | Path, out: str | Path, *, allow_incomplete: bool = False) -> list[Path]:
    """Prepare a file of MedMNIST v2 or MedMNIST+, with its own split.

    Args:
        source: The file, as pathmnist_224.npz, or a folder with it alone. It is unpacked to the folder for temporary
            files, so that it need not fit into memory. Under the name of a dataset of MedMNIST's the classes have their
            names, otherwise their numbers.
        out: Folder to write, new or empty. One that holds the same dataset, and nothing else, is replaced.
        allow_incomplete: Leave out what is not sound and go on; `dataset.json` has the findings.

    Returns:
        The prepared folder.

    Raises:
        ValueError: If the file is 3-D or multi-label, holds pickles or other arrays, or its images are not sound.
        OSError: If a file cannot be read or written.
    """
    path = _find_file(Path(source))
    flag = re.sub(r"_\d+$", "", path.stem.lower())
    if flag.endswith("3d") or flag == "chestmnist":
        what = "3-D: its images are volumes" if flag.endswith("3d") else "multi-label: its images have several classes"
        raise ValueError(f"{path.name} is {what}, and images of one class each are prepared")
    title, _ = _KNOWN.get(flag, (path.stem, ()))
    data = Dataset(
        name=title,
        description=f"{title}, as MedMNIST publishes it.",
        labels={},
        license="cc-by-nc-4.0" if flag == "dermamnist" else "cc-by-4.0",
        license_note="CC BY-NC 4.0" if flag == "dermamnist" else "CC BY 4.0",
        url="https://medmnist.com",
        citation="Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), and the source of this dataset named there",
    )

    def read(source: Path, stack: ExitStack) -> Inventory:
        inventory = Inventory(data, flag, parts=[path.name], is_official=True)
        entries = _read_entries(path, flag, stack)
        add_samples(inventory, entries, {entry.label for entry in entries})
        return inventory

    plan = Plan(
        names=(flag,),
        read=read,
        split=lambda samples: {"": [sample.split for sample in samples]},
        splits=lambda _: list(SPLITS),
        describe=lambda _: dict(split="official", split_scheme="that of the file", seed=None, val_share=None),
    )
    return carry_out(plan, source, out, allow_incomplete)


def _find_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    files = sorted(source.glob("*.npz"))
    if len(files) != 1:
        raise ValueError(f"source {source} holds {shorten(f.name for f in files) or 'no .npz file'}: give one file")
    return files[0]


def _read_entries(path: Path, flag: str, stack: ExitStack) -> list[Entry]:
    arrays = _open_arrays(path, stack)
    names = _KNOWN[flag][1] if flag in _KNOWN else [str(label) for label in range(_MOST_CLASSES)]
    entries = []
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        _check_arrays(f"{path.name}, {split}", images, labels)
        labels = labels.reshape(-1).tolist()
        if not 0 <= min(labels) <= max(labels) < len(names):
            raise ValueError(
                f"{path.name} has labels from {min(labels)} to {max(labels)}, expected 0 to {len(names) - 1}"
            )
        for number, label in enumerate(labels):
            inside = PurePosixPath(f"{split}{number}.png")
            entries.append(Entry(SourceFile(inside, _make_reader(images, number)), names[label], split=split))
    return entries


def _open_arrays(path: Path, stack: ExitStack) -> dict[str, np.ndarray]:
    """The six arrays of a file, each read from the disk where it is looked at."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in (f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")):
                if f"{name}.npy" not in archive.namelist():
                    held = shorten(member.removesuffix(".npy") for member in archive.namelist())
                    raise ValueError(f"it holds {held}: lacks {name}")
                with archive.open(f"{name}.npy") as member, open(folder / name, "wb") as f:
                    shutil.copyfileobj(member, f)
                arrays[name] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # a damaged file fails at whatever its first wrong byte leads to
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # as the disk; of a damaged archive places are invalid
            raise
        raise ValueError(f"{path.name} is no file of MedMNIST that can be read without pickle: {first_line(e)}") from e
    return arrays


def _check_arrays(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim > 4 or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"{name} is 3-D, {' x '.join(map(str, images.shape[1:]))}: volumes cannot be prepared")
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise ValueError(f"{name} is multi-label, {labels.shape[-1]} a row: images of one class each are prepared")
    if images.ndim < 3 or images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has images of {images.dtype} and labels of {labels.dtype}, expected uint8 and integers"
        )
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels, expected as many, and some")


def _make_reader(images: np.ndarray, number: int) -> Callable[[], bytes]:
    def read() -> bytes:
        png = io.BytesIO()
        Image.fromarray(np.array(images[number])).save(png, "PNG")
        return png.getvalue()

    return read
