"""A trained network of timm as a file for another runtime, which is compared with PyTorch before it is there."""

import math
import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from ..checkpoint import checksum_weights
from ..exported import ENDINGS, PRECISIONS_OF_FORMATS, Metadata, is_exported, read_exported, require_quietly
from ..files import check_writable, replacing_file
from ..hifuse import HiFuse
from ..image_folders import find_images
from ..loading import Trained, load_trained
from ..version import __version__
from .comparison import Comparison, Speed, compare, draw_images, measure_speed, read_images
from .writers import LIBRARIES, WRITERS

__all__ = ["Exported", "choose_images", "describe", "export", "find_versions"]

_MOST_CALIBRATED = 300  # images, which nncf takes by default
_MOST_COMPARED = 100  # images, of which the top class may differ in one where 99% are asked for


@dataclass(frozen=True)
class Exported:
    """What became of an export.

    Attributes:
        files: The files that were written.
        metadata: What they say of the network.
        comparison: How they differ from PyTorch.
        speed: A quick look at how long an image takes.
        origins: Where the weights, the transform and the classes come from, in words.
    """

    files: list[Path]
    metadata: Metadata
    comparison: Comparison
    speed: Speed
    origins: dict[str, str]


def export(
    model: str,
    checkpoint: str | Path | None = None,
    *,
    out: str | Path,
    format: str,
    precision: str = "float32",
    data_dir: str | Path | None = None,
    dynamic_batch: bool = False,
    **options,
) -> Exported:
    """Write a trained network, as train.py left it or pretrained, to a file for another runtime.

    The network is that of `load_trained`, a HiFuse fused. The file takes normalised images, (N, C, H, W) in float32,
    and gives logits, (N, K) in float32, whatever it computes in. Its metadata have what `evaluate` and `predict` need
    to take it in the place of a checkpoint. It is run and compared with PyTorch, on images of val where there are some
    and else on noise, and takes its place only if it agrees.

    Args:
        model: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code; None for the
            pretrained weights of the model.
        out: File to write; one that is there is replaced. An .xml of OpenVINO has a .bin beside it.
        format: One of `ENDINGS`, with whose ending `out` ends.
        precision: What the file computes in, one of `PRECISIONS_OF_FORMATS`.
        data_dir: Dataset, as `prepare` writes it, whose val int8 is calibrated on and all is compared on.
        dynamic_batch: Whether the file takes any number of images at once, and not one alone.
        **options: Others of `load_trained`, but for the device, which is the CPU.

    Raises:
        ValueError: If an argument is not valid, the network cannot be exported, or the file does not agree with
            PyTorch.
        OSError: If a file is missing, the weights cannot be had, or the file cannot be written.
        RuntimeError: If a library is missing, or the model has no pretrained weights.
    """
    out = Path(out)
    _check_arguments(out, format, precision, data_dir, checkpoint)
    versions = find_versions(format, precision)
    calibration, compared = (None, None) if data_dir is None else choose_images(Path(data_dir), precision)
    trained = load_trained(model, checkpoint, device="cpu", data_dir=data_dir, **options)
    metadata = describe(trained, format=format, precision=precision, dynamic_batch=dynamic_batch, versions=versions)
    if isinstance(trained.model, HiFuse):
        trained.model.fuse()
    trained.model.requires_grad_(False)
    images = draw_images(trained) if compared is None else read_images(trained, compared)
    files = [out, *([out.with_suffix(".bin")] if format == "openvino" else [])]
    with ExitStack() as stack:
        # entered last, the .bin takes its place first: an .xml from before would refuse it
        places = [stack.enter_context(replacing_file(file)) for file in files]
        WRITERS[format](trained, metadata, calibration, places[0])
        exported = read_exported(places[0], trust_pt2=True)
        comparison = compare(trained.model, exported, images, is_noise=compared is None)
        comparison.check(precision)
        speed = measure_speed(trained.model, exported, images[:1])
        for place in places[1:]:
            places[0].with_suffix(place.suffix).replace(place)
    return Exported(files, metadata, comparison, speed, trained.origins)


def describe(trained: Trained, **export_args) -> Metadata:
    """What the file is to say of a network, which is not fused yet."""
    return Metadata(
        architecture=trained.model.pretrained_cfg["architecture"],
        num_classes=trained.model.num_classes,
        classes=None if trained.class_names is None else list(trained.class_names),
        image_mode=trained.image_mode,
        transform={key: list(v) if isinstance(v, tuple) else v for key, v in trained.data_config.items()},
        weights=checksum_weights(trained.model.state_dict()),
        **export_args,
    )


def _check_arguments(
    out: Path, format: str, precision: str, data_dir: str | Path | None, checkpoint: str | Path | None
) -> None:
    if format not in ENDINGS:
        raise ValueError(f"format {format!r} is not known: expected one of {', '.join(ENDINGS)}")
    if precision not in PRECISIONS_OF_FORMATS[format]:
        possible = "; ".join(f"{name}: {', '.join(found)}" for name, found in PRECISIONS_OF_FORMATS.items())
        raise ValueError(f"precision {precision!r} is not there for format {format}: expected one of {possible}")
    if out.suffix != ENDINGS[format]:
        raise ValueError(f"out {out} must end in {ENDINGS[format]} for format {format}")
    if precision == "int8" and data_dir is None:
        raise ValueError("precision int8 is calibrated on images of val: give data_dir (--data-dir)")
    if is_exported(checkpoint):
        raise ValueError(f"checkpoint {checkpoint} is exported already: give what it was made of")
    check_writable(out)
    if format == "openvino":
        weights = out.with_suffix(".bin")
        check_writable(weights)
        if weights.exists() and not out.exists():
            raise FileExistsError(f"{weights} would be replaced, and is of no {out.name}: move it, or give another out")


def find_versions(format: str, precision: str) -> dict[str, str]:
    """Versions of all that makes the file, which must be there before long work."""
    found = dict(hifuse_timm=__version__, timm=timm.__version__, torch=torch.__version__)
    libraries = [(name, "export") for name in LIBRARIES[format]] + [("nncf", "int8")] * (precision == "int8")
    return found | {name: require_quietly(name, extra).__version__ for name, extra in libraries}


def choose_images(data_dir: Path, precision: str) -> tuple[list[str] | None, list[str]]:
    """Images of val by chance, always the same: those that int8 is calibrated on, and others to compare on."""
    folder = data_dir / "val"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}, on whose images int8 is calibrated and all is compared, is no folder")
    files = [file for file, _ in find_images(folder).samples]
    least = 2 if precision == "int8" else 1
    if len(files) < least:
        raise ValueError(f"{folder} has {len(files)} images, expected {least} or more")
    random.Random(0).shuffle(files)
    if precision != "int8":
        return None, files[:_MOST_COMPARED]
    compared = files[: min(_MOST_COMPARED, math.ceil(len(files) / 4))]
    return files[len(compared) :][:_MOST_CALIBRATED], compared
