"""Evaluation of any timm model on image folders, with the metrics of the paper's Section 4.2 and beside its figures.

Everything here needs `pip install 'hifuse-timm[medical]'`. What the metrics do with classes that never occur or that
are never predicted is in `hifuse_timm.evaluate.metrics`.
"""

import csv
import io
import json
import os
import textwrap
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_loader, resolve_data_config
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.data import Dataset

from ..checkpoint import Checkpoint, read_checkpoint
from ..convert import Architecture, check_architecture, convert_state_dict
from ..errors import require, shorten
from ..files import save_figure, write_text
from ..hifuse import HiFuse
from ..paper import paper_result
from ..version import __version__
from .metrics import CLASS_METRICS, bootstrap_intervals, compute_metrics

__all__ = ["PRECISIONS", "Evaluation", "evaluate"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_UNREADABLE = -1  # class index of an image that cannot be read


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        result: What `save_json` writes. The metrics as numbers at the top, fractions from 0 to 1, None where undefined;
            all else in strings and nested objects, which `publish --metrics` leaves alone.
        files: Path of each image in the dataset's folder.
        classes: Names of the classes, in the order of the network's outputs.
        probs: Probability of each class for each image, (N, K), float64.
        targets: Class index of each image, (N,).
    """

    result: dict
    files: list[str]
    classes: list[str]
    probs: torch.Tensor
    targets: torch.Tensor

    def save_predictions(self, path: str | Path) -> None:
        """Write each image's true class, predicted class and probabilities as CSV."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["file", "class", "predicted", *(f"p_{name}" for name in self.classes)])
        for file, target, row in zip(self.files, self.targets.tolist(), self.probs, strict=True):
            names = self.classes[target], self.classes[row.argmax()]
            writer.writerow([file, *names, *(f"{p:.9g}" for p in row.tolist())])
        write_text(path, lines.getvalue())

    def save_plots(self, directory: str | Path) -> list[Path]:
        """Write confusion_matrix.png, roc.png and reliability.png to a folder, made where it is missing.

        Returns:
            The files.
        """
        from .plots import draw_confusion, draw_reliability, draw_roc

        r = self.result
        title = f"{r['architecture']} on {r['title']}, {r['split']}"
        auroc = [figures["auroc"] for figures in r["per_class"].values()]
        figures = {
            "confusion_matrix": draw_confusion(torch.tensor(r["confusion"]), self.classes, title),
            "roc": draw_roc(self.probs, self.targets, self.classes, auroc, title),
            "reliability": draw_reliability(self.probs, self.targets, r["ece"], title),
        }
        directory = Path(directory)
        directory.mkdir(exist_ok=True)
        paths = []
        for name, figure in figures.items():
            paths.append(directory / f"{name}.png")
            save_figure(figure, paths[-1])
        return paths


def evaluate(
    model: str,
    data_dir: str | Path,
    checkpoint: str | Path | None = None,
    *,
    split: str = "test",
    use_ema: bool | None = None,
    fuse: bool = False,
    device: str | None = None,
    precision: str = "float32",
    batch_size: int = 32,
    workers: int | None = None,
    model_kwargs: dict | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a model of timm on a split of a dataset.

    Images are resized, cropped and normalised as in training: as the arguments say, else as train.py's arguments in
    the checkpoint say, else as the model's pretrained config says. The class indices are those of `dataset.json`, else
    those of timm's reader on `data_dir/train`, which train.py used; weights that name their classes have their own.

    Args:
        model: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`.
        data_dir: Folder with `SPLIT/CLASS/*` images, as `prepare` writes it.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code; None for the
            pretrained weights of the model.
        split: Folder in `data_dir` to evaluate on.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        fuse: Whether to fold the network for inference, which leaves its outputs as they are but for rounding.
        device: As `cpu` or `cuda:1`; the machine's accelerator by default, where it has one.
        precision: One of `PRECISIONS`; of the lower ones, autocast decides what is computed in them.
        batch_size: Images at once.
        workers: Processes that read images, 0 to read them in this one; by default one a core, at most 4.
        model_kwargs: Further arguments of the network, over those in the checkpoint.
        img_size: Pixels a side that the network sees.
        crop_pct: Share of the resized image's side that the centre crop keeps.
        mean: Mean of the normalisation, one value or one a channel.
        std: Standard deviation of the normalisation, one value or one a channel.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap; all else is deterministic.

    Raises:
        ValueError: If an argument is not valid, the classes do not fit the network, the checkpoint is of another
            network, an image cannot be read, or the network's outputs are not finite.
        OSError: If a folder or a file is missing, or the weights cannot be had.
        RuntimeError: If a library is missing, timm does not know the model, or it has no pretrained weights.
    """
    tqdm, torchmetrics = require("tqdm", "medical"), require("torchmetrics", "medical")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not known: expected one of {', '.join(PRECISIONS)}")
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(4, cores)
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("resamples", resamples, 1)):
        if value < least:
            raise ValueError(f"{name} {value} is too small: expected {least} or more")
    if use_ema and checkpoint is None:
        raise ValueError("use_ema needs a checkpoint of train.py, which keeps averaged weights: give checkpoint")
    device = _find_device(device)
    data_dir = Path(data_dir)
    samples, found = _find_images(data_dir, split)
    description = _read_description(data_dir)
    classes = _find_classes(data_dir, description, found)

    loaded = None if checkpoint is None else read_checkpoint(checkpoint, use_ema)
    training_args = loaded.training_args if loaded else {}
    data_args = {
        key: value
        for key, value in dict(img_size=img_size, crop_pct=crop_pct, mean=mean, std=std).items()
        if value is not None
    }
    if loaded is None:
        network = _create_model(model, model_kwargs or {}, img_size, pretrained=True)
        label_names = network.pretrained_cfg.get("label_names")
        if isinstance(label_names, (list, tuple)) and len(label_names) == network.num_classes:
            classes = list(label_names)
    else:
        network = _load_checkpoint(model, checkpoint, loaded, model_kwargs, img_size, classes)
    weights = f"checkpoint {checkpoint}" if checkpoint is not None else f"model {model}"
    if network.num_classes != len(classes):
        raise ValueError(
            f"{weights} has {network.num_classes} classes, the dataset has {len(classes)}: {shorten(classes)}"
        )
    if unknown := [name for name in found if name not in classes]:
        raise ValueError(
            f"{data_dir / split} has folders of other classes, {shorten(unknown)}: expected those of {weights}, "
            f"{shorten(classes)}"
        )

    data_config = resolve_data_config(
        {**training_args, **({"input_size": None} if img_size else {}), **data_args},
        model=network,
        use_test_size=checkpoint is None,  # train.py validates at the size of the training
    )
    in_chans = _in_chans(network, data_config["input_size"][0])
    data_config["input_size"] = (in_chans, *data_config["input_size"][1:])
    if fuse:
        network = _fuse(network, model)
    mode = training_args.get("input_img_mode") or ("RGB" if in_chans == 3 else "L")
    files = [os.path.relpath(path, data_dir) for path, _ in samples]
    dataset = _Images([(path, classes.index(name)) for path, name in samples], mode)
    loader = create_loader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        device=device,
        pin_memory=device.type == "cuda",
        **data_config,
    )
    with tqdm.tqdm(total=len(dataset), desc=split, unit="image", disable=None) as progress:
        probs, targets = _predict(network.to(device), loader, device, PRECISIONS[precision], files, data_dir, progress)

    figures, by_class = compute_metrics(probs, targets)
    intervals, class_intervals = bootstrap_intervals(probs, targets, resamples=resamples, seed=seed)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
    confusion.index_put_((targets, probs.argmax(1)), torch.ones_like(targets), accumulate=True)
    architecture = network.pretrained_cfg["architecture"]
    result = dict(
        **figures,
        kind="evaluation",
        model=model,
        architecture=architecture,
        dataset=description.get("name"),
        title=description.get("title") or data_dir.absolute().name,
        split=split,
        counts=dict(images=len(targets), classes=len(classes)),
        intervals=dict(
            level=0.95, method="percentile bootstrap over images", resamples=resamples, seed=seed, **intervals
        ),
        per_class={
            name: dict(
                images=confusion[k].sum().item(),
                predicted=confusion[:, k].sum().item(),
                **{metric: by_class[metric][k] for metric in CLASS_METRICS},
                intervals={metric: class_intervals[metric][k] for metric in CLASS_METRICS},
            )
            for k, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
        paper=paper_result(architecture, description.get("name")),
        conditions=dict(
            checkpoint=None if checkpoint is None else str(checkpoint),
            use_ema=loaded is not None and loaded.averaged,
            fuse=fuse,
            precision=precision,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            batch_size=batch_size,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()},
            hifuse_timm=__version__,
            timm=timm.__version__,
            torch=torch.__version__,
            torchmetrics=torchmetrics.__version__,
        ),
    )
    return Evaluation(result, files, classes, probs, targets)


def _find_device(name: str | None) -> torch.device:
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # what a build without the device raises
        raise ValueError(f"device {name!r} cannot be used ({str(e).splitlines()[0]}): expected cpu, cuda, ...") from e
    return device


def _find_images(data_dir: Path, split: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The images of a split in timm's order with the names of their classes, and these names."""
    folder = data_dir / split
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir {data_dir} does not exist or is not a folder")
    if not folder.is_dir():
        has = [path.name for path in sorted(data_dir.iterdir()) if path.is_dir()]
        raise FileNotFoundError(f"split {split!r} is no folder in {data_dir}, which has {shorten(has) or 'none'}")
    samples, found = find_images_and_targets(str(folder))
    names = list(found)
    if not samples or "" in found:  # timm reads images beside the folders as a class without name
        raise ValueError(f"{folder} must hold its images in a folder for each class, as {folder / 'CLASS' / '*.png'}")
    return [(path, names[target]) for path, target in samples], names


def _read_description(data_dir: Path) -> dict:
    """What `prepare` wrote on a dataset; nothing of folders that it did not make."""
    path = data_dir / "dataset.json"
    if not path.exists():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        classes = description["classes"]
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"its classes are {classes}")
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"{path} does not name the classes as prepare does ({e!r}): write it again, or remove it"
        ) from e
    return description


def _find_classes(data_dir: Path, description: dict, found: list[str]) -> list[str]:
    if description:
        return list(description["classes"])
    if (data_dir / "train").is_dir():  # a split may lack a class, which would shift those behind it
        return list(find_images_and_targets(str(data_dir / "train"))[1])
    return found


def _create_model(name: str, kwargs: dict, img_size: int | None, **options) -> nn.Module:
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"model {name!r} is not known to timm: see timm.list_models()")
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) if ":" not in name else None
    if img_size is not None and cfg is not None and cfg.fixed_input_size:
        kwargs = {"img_size": img_size, **kwargs}
    try:
        return timm.create_model(name, **options, **kwargs).eval()
    except TypeError as e:
        raise ValueError(f"model {name} cannot be built with {kwargs}: {e}") from e


def _load_checkpoint(
    name: str,
    checkpoint: str | Path,
    loaded: Checkpoint,
    model_kwargs: dict | None,
    img_size: int | None,
    classes: list[str],
) -> nn.Module:
    """The network as train.py built it, with the weights of a checkpoint."""
    state_dict, training_args = loaded.state_dict, loaded.training_args
    in_chans = training_args.get("in_chans") or (training_args.get("input_size") or [None])[0]
    kwargs = dict(in_chans=in_chans, global_pool=training_args.get("gp"), bn_eps=training_args.get("bn_eps"))
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    kwargs |= (training_args.get("model_kwargs") or {}) | (model_kwargs or {})
    if name.startswith("hifuse_"):
        state_dict, _ = convert_state_dict(state_dict)
        architecture = Architecture.of(state_dict)
        kwargs["in_chans"] = architecture.in_chans
    network = _create_model(name, kwargs, img_size, num_classes=len(classes))
    classifiers = network.pretrained_cfg.get("classifier") or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weight = state_dict.get(f"{classifier}.weight")
        if weight is not None and len(weight) != len(classes):
            raise ValueError(
                f"checkpoint {checkpoint} has {len(weight)} classes, the dataset has {len(classes)}: {shorten(classes)}"
            )
    if isinstance(network, HiFuse):
        check_architecture(state_dict, network.state_dict())
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as e:
        raise ValueError(f"checkpoint {checkpoint} does not fit {name}: {textwrap.shorten(str(e), 400)}") from e
    return network


def _in_chans(network: nn.Module, default: int) -> int:
    """Input channels of a network: those of its first convolution, where timm knows which it is."""
    first = network.pretrained_cfg.get("first_conv")
    first = first[0] if isinstance(first, (list, tuple)) else first
    conv = network.get_submodule(first) if first else None
    return conv.in_channels if isinstance(conv, nn.Conv2d) else default


def _fuse(network: nn.Module, name: str) -> nn.Module:
    if not any(hasattr(m, f) for m in network.modules() for f in ("fuse", "reparameterize", "switch_to_deploy")):
        raise ValueError(f"fuse: {name} has nothing to fold for inference")
    return reparameterize_model(network, inplace=True)


class _Images(Dataset):
    """Image files with a transform, which timm's create_loader sets.

    timm's own dataset takes the next image in the place of one that it cannot read.
    """

    def __init__(self, samples: list[tuple[str, int]], mode: str):
        self.samples = samples
        self.mode = mode
        self.transform = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, target = self.samples[index]
        try:
            with Image.open(path) as image:
                image = image.convert(self.mode)
        except Exception:  # decoders raise whatever a damaged file leads them to
            image, target = Image.new(self.mode, (1, 1)), _UNREADABLE
        return self.transform(image), target


@torch.inference_mode()
def _predict(network, loader, device, dtype, files, data_dir, progress) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, (N, K) in float64, and class indices, (N,)."""
    probs, targets = [], []
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for images, batch_targets in loader:
            if (batch_targets == _UNREADABLE).any():
                unreadable = (batch_targets == _UNREADABLE).nonzero().flatten().tolist()
                bad = [files[sum(map(len, probs)) + i] for i in unreadable]
                raise ValueError(f"{shorten(bad)} in {data_dir} cannot be read as images: replace or remove them")
            with autocast:
                logits = network(images)
            if not logits.isfinite().all():
                advice = "" if dtype == torch.float32 else "; try precision float32"
                raise ValueError(f"the network's outputs are not finite{advice}")
            probs.append(logits.cpu().double().softmax(1))
            targets.append(batch_targets.cpu())
            progress.update(len(images))
    return torch.cat(probs), torch.cat(targets)
