"""Evaluation of any timm model on image folders: the metrics of the paper's Section 4.2, beside the paper's own.

Everything here needs the extra `medical`. What the metrics do with classes that never occur or that
are never predicted is in `hifuse_timm.metrics`.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from ..bootstrap import check_resampling, draw_weights
from ..checkpoint import checksum_weights
from ..curves import measure_curves
from ..datasets import read_description
from ..errors import require, shorten
from ..files import save_figure
from ..image_folders import ImageFolder, find_images
from ..inference import Predicted, batched, check_options, fold, predict_files
from ..loading import Trained, find_device, load_for_inference
from ..paper import paper_result
from ..predictions import Predictions, checksum_predictions, write_predictions
from ..runs import CLASS_METRICS
from ..version import __version__
from .calibrating import measure_calibrated, read_calibration_of_others
from .columns import Columns
from .leaks import count_shared
from .measuring import measure, measure_subgroups

__all__ = ["Evaluation", "evaluate"]

_logger = logging.getLogger(__name__)


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
        groups: Name of each image's group, as of its patient; None where none are named.
        uncalibrated: The network's own probabilities, (N, K), where `probs` are calibrated ones; None where not.
        trained: The network.
    """

    result: dict
    files: list[str]
    classes: list[str]
    probs: torch.Tensor
    targets: torch.Tensor
    groups: list[str] | None
    uncalibrated: torch.Tensor | None
    trained: Trained

    @property
    def predictions(self) -> Predictions:
        """What the network says of the images."""
        return Predictions(self.files, self.classes, self.probs, self.targets, self.groups)

    def save_predictions(self, path: str | Path) -> None:
        """Write each image's true class, group, predicted class and probabilities as CSV."""
        write_predictions(path, self.predictions)

    def save_plots(self, directory: str | Path) -> list[Path]:
        """Write confusion_matrix.png, roc.png, precision_recall.png and reliability.png to a folder.

        The folder is made where it is missing.

        Returns:
            The files.
        """
        from .plots import draw_confusion, draw_precision_recall, draw_reliability, draw_roc

        r, intervals = self.result, self.result["intervals"]
        weights = draw_weights(len(self.files), intervals["resamples"], intervals["seed"], self.groups)
        curves = measure_curves(self.probs, self.targets, weights, range(len(self.classes)), intervals["level"])
        areas = {name: [of_class[name] for of_class in r["per_class"].values()] for name in CLASS_METRICS}
        title = f"{r['architecture']} on {r['title']}, {r['split']}"
        figures = {
            "confusion_matrix": draw_confusion(torch.tensor(r["confusion"]), self.classes, title),
            "roc": draw_roc(curves, self.classes, areas["auroc"], title),
            "precision_recall": draw_precision_recall(curves, self.classes, areas["average_precision"], title),
            "reliability": draw_reliability(self.probs, self.targets, r["ece"], title),
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
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
    class_map: str | Path | None = None,
    model_kwargs: dict | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    trust_pt2: bool = False,
    group_column: str | None = None,
    resample: str | None = None,
    calibration: str | Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    by: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a model of timm on a split of a dataset.

    Images are resized, cropped and normalised as in training: as the arguments say, else as train.py's arguments in
    the checkpoint say, else as the model's pretrained config says. The class indices are those of the class map that
    the training was given, else those of `dataset.json`, else those of timm's reader on `data_dir/train`, which
    train.py used; pretrained weights that name their classes have their own. What is left out of the images, and a
    choice that may not be what is meant, is logged as a warning.

    Args:
        model: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`.
        data_dir: Folder with `SPLIT/CLASS/*` images, as `prepare` writes it.
        checkpoint: What timm's train.py saved, a safetensors file, or a checkpoint of the authors' code; or what
            `export` wrote; None for the pretrained weights of the model.
        split: Folder in `data_dir` to evaluate on.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        fuse: Whether to fold the network for inference, which leaves its outputs as they are but for rounding.
        device: As `cpu` or `cuda:1`; the machine's accelerator by default, where it has one.
        precision: One of `PRECISIONS`; of the lower ones, autocast decides what is computed in them.
        batch_size: Images at once.
        workers: Processes that read images, 0 to read them in this one; by default one a core, at most 4.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`; by default the one
            that train.py's arguments in the checkpoint name.
        model_kwargs: Further arguments of the network, over those in the checkpoint.
        img_size: Pixels a side that the network sees.
        crop_pct: Share of the resized image's side that the centre crop keeps.
        crop_mode: `center`, `squash` or `border`: how an image of another shape is fitted, as `load_trained` has it.
        mean: Mean of the normalisation, one value or one a channel.
        std: Standard deviation of the normalisation, one value or one a channel.
        trust_pt2: Whether to read a .pt2 of `export`, which can run any code.
        group_column: Column of `splits.csv` that says which images belong together, as those of a patient; by default
            `subject` or else `group`, as `prepare` writes them, where they name some that do.
        resample: What the bootstrap draws, `groups` or `images`; by default groups where there are some.
        calibration: What `calibrate` wrote for this network on other images: all that is measured, and the predictions,
            are of calibrated probabilities, and `calibration` in the result says what the calibration does.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap; all else is deterministic.
        by: Columns of `splits.csv` whose values are measured each for itself, as `site`; of numbers in bands, as
            `age:40,60,80`.

    Raises:
        ValueError: If an argument is not valid, the classes do not fit the network, the checkpoint is of another
            network, an image cannot be read or has no group, the network's outputs are not finite, or the calibration
            is of another network or was fitted on these images.
        OSError: If a folder or a file is missing, or the weights cannot be had.
        RuntimeError: If a library is missing, timm does not know the model, or it has no pretrained weights.
    """
    require("tqdm", "medical")
    torchmetrics = require("torchmetrics", "medical")
    workers = check_options(precision, batch_size, workers, [checkpoint])
    check_resampling(resamples, resample)
    device = find_device(device)
    data_dir = Path(data_dir)
    description = read_description(data_dir)
    images = _find_images(data_dir, split)
    files = [os.path.relpath(path, data_dir) for path, _ in images.samples]
    columns = Columns(data_dir, files)
    groups = columns.find_groups(group_column, resample)
    subgroups = {of: columns.find_subgroups(of) for of in by}
    in_train = count_shared(columns, description, split, group_column)
    if shared := [f"{what} {count:,}" for what, count in in_train.items() if count]:
        _logger.warning(f"of the {len(files):,} images of {split}, train has, too, by {', by '.join(shared)}")
    if calibration is not None:
        calibration = read_calibration_of_others(calibration, files, description.get("name"), split)
    trained = load_for_inference(
        model,
        checkpoint,
        use_ema=use_ema,
        device=device,
        data_dir=data_dir,
        class_map=class_map,
        folders=images.classes,
        model_kwargs=model_kwargs,
        img_size=img_size,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=mean,
        std=std,
        trust_pt2=trust_pt2,
    )
    if unknown := [name for name in images.classes if name not in trained.class_names]:
        raise ValueError(
            f"{data_dir / split} has folders of other classes, {shorten(unknown)}: expected those that are "
            f"{trained.origins['classes']}, {shorten(trained.class_names)}"
        )
    weights = checksum_weights(trained.model.state_dict())
    if calibration is not None:
        calibration = calibration.matched_to(trained.class_names, [weights], [trained.data_config])
    if fuse:
        fold(trained)
    batches = batched((path for path, _ in images.samples), batch_size)
    predicted = predict_files(batches, [trained], device=device, precision=precision, workers=workers)
    probs = _predict(predicted, len(images.samples), data_dir)
    targets = torch.tensor([trained.class_names.index(name) for _, name in images.samples])
    uncalibrated, origins, calibrated = None, trained.origins, {}
    if calibration is not None:
        calibrated = dict(calibration=measure_calibrated(calibration, probs, targets, groups, resamples, seed))
        uncalibrated, probs = probs, calibration.apply(probs)
        origins = origins | dict(probabilities=f"calibrated by {calibration.path}")
    measured = {
        of: measure_subgroups(images_of, probs, targets, groups, resamples, seed) for of, images_of in subgroups.items()
    }
    result = dict(
        **measure(trained.class_names, probs, targets, groups, resamples, seed),
        **({"subgroups": measured} if measured else {}),
        kind="evaluation",
        model=model,
        architecture=trained.model.pretrained_cfg["architecture"],
        dataset=description.get("name"),
        title=description.get("title") or data_dir.absolute().name,
        split=split,
        origins=origins,
        in_train=in_train,
        **calibrated,
        paper=paper_result(trained.model.pretrained_cfg["architecture"], description.get("name")),
        conditions=dict(
            checkpoint=None if checkpoint is None else str(checkpoint),
            weights=weights,
            use_ema=trained.checkpoint is not None and trained.checkpoint.averaged,
            fuse=fuse,
            precision=trained.precision or precision,
            group_column=None if groups is None else columns.name_groups(group_column),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            batch_size=batch_size,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in trained.data_config.items()},
            hifuse_timm=__version__,
            timm=timm.__version__,
            torch=torch.__version__,
            torchmetrics=torchmetrics.__version__,
        ),
    )
    evaluation = Evaluation(result, files, list(trained.class_names), probs, targets, groups, uncalibrated, trained)
    result["predictions"] = checksum_predictions(evaluation.predictions)
    return evaluation


def _find_images(data_dir: Path, split: str) -> ImageFolder:
    """The images of a split; what is left out of them is logged."""
    folder = data_dir / split
    if not folder.is_dir():
        has = [path.name for path in sorted(data_dir.iterdir()) if path.is_dir()]
        raise FileNotFoundError(f"split {split!r} is no folder in {data_dir}, which has {shorten(has) or 'none'}")
    images = find_images(folder)
    for files, reason in (
        (images.left_out, "are in formats that timm's reader leaves out; convert them to PNG to count them"),
        (images.repeated, "are links to what is there already, and count once"),
    ):
        if files:
            names = shorten([os.path.relpath(file, data_dir) for file in files], 4)
            _logger.warning(f"{len(files)} of the files in {folder} {reason}: {names}")
    if not images.samples or "" in images.classes:
        raise ValueError(f"{folder} must hold its images in a folder for each class, as {folder / 'CLASS' / '*.png'}")
    return images


def _predict(batches: Iterable[Predicted], num_images: int, data_dir: Path) -> torch.Tensor:
    """Probabilities of all images, (N, K) in float64."""
    from tqdm import tqdm

    probs = []
    with tqdm(total=num_images, desc="images", unit="image", disable=None) as progress:
        for batch in batches:
            faults = {os.path.relpath(f, data_dir): fault for f, fault in zip(batch.files, batch.faults, strict=True)}
            if bad := [file for file, fault in faults.items() if fault is not None]:
                raise ValueError(
                    f"{shorten(bad)} in {data_dir} cannot be read as images: replace or remove them; {faults[bad[0]]}"
                )
            probs.append(batch.probs)
            progress.update(len(batch.files))
    return torch.cat(probs)
