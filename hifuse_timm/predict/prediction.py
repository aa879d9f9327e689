"""A table of probabilities for images of one's own, by any timm model.

Needs the extra `medical`, and for DICOM `explain`.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ..calibration import Calibration, read_calibration
from ..checkpoint import checksum_weights
from ..errors import require, shorten
from ..image_folders import is_image, walk_files
from ..inference import Predicted, batched, check_options, fold, predict_files
from ..loading import Trained, load_for_inference
from ..predictions import name_columns, write_cells
from .processes import broadcast, gather, joined, take_device
from .table import Table, check_table

__all__ = ["Summary", "predict"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What became of the images.

    Attributes:
        images: Rows in the table.
        unreadable: How many of them are of images that cannot be read.
        computed: How many rows this run added.
        seconds: What that took, without loading the networks.
        origins: Where each network's weights, transform and classes come from, in words.
    """

    images: int
    unreadable: int
    computed: int
    seconds: float
    origins: list[dict[str, str]]


def predict(
    sources: Iterable[str | Path],
    model: str,
    checkpoints: Sequence[str | Path] = (),
    *,
    out: str | Path,
    resume: bool = False,
    classes: Sequence[str] | None = None,
    class_map: str | Path | None = None,
    data_dir: str | Path | None = None,
    use_ema: bool | None = None,
    tta: bool = False,
    fuse: bool = False,
    device: str | None = None,
    precision: str = "float32",
    batch_size: int = 32,
    workers: int | None = None,
    model_kwargs: dict | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    calibration: str | Path | None = None,
    trust_pt2: bool = False,
) -> Summary | None:
    """Write the predicted class of images and the probability of each class as CSV.

    The probabilities are those of `evaluate`. An image that cannot be read has its row with the reason in the last
    column. Under torchrun the processes take batches in turn, and the first one writes the table; it is the same.

    Args:
        sources: Image files, DICOM among them, and folders, with all images in them. Each file counts once. Of a folder
            the files are taken that are images by their ending, or DICOM by their content; others are logged.
        model: Name of a model in timm, or `hf-hub:ID` or `local-dir:DIR`.
        checkpoints: What timm's train.py saved, safetensors files, or checkpoints of the authors' code, or what
            `export` wrote, whose probabilities are averaged; none for the pretrained weights of the model.
        out: Table to write. One that is there is replaced, but for one that is not whole yet.
        resume: Whether to go on with a table that is not whole yet; one that is not there is begun.
        classes: Names of the classes in the order of the outputs; by default as `load_for_inference` finds them.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`.
        data_dir: Dataset whose dataset.json, or train folder, names the classes.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        tta: Whether to average over each image as it is, mirrored, upside down, and both.
        fuse: Whether to fold the networks for inference, which leaves their outputs as they are but for rounding.
        device: As `cpu` or `cuda:1`; the machine's accelerator by default, under torchrun one for each process.
        precision: One of `PRECISIONS`; of the lower ones, autocast decides what is computed in them.
        batch_size: Images at once.
        workers: Processes that read images, 0 to read them in this one; by default one a core, at most 4.
        model_kwargs: Further arguments of the network, over those in the checkpoint.
        img_size: Pixels a side that the network sees.
        crop_pct: Share of the resized image's side that the centre crop keeps.
        crop_mode: `center`, `squash` or `border`: how an image of another shape is fitted, as `load_trained` has it.
        mean: Mean of the normalisation, one value or one a channel.
        std: Standard deviation of the normalisation, one value or one a channel.
        calibration: What `calibrate` wrote for this network: the probabilities are calibrated, and what is decided by
            them has columns of its own.
        trust_pt2: Whether to read a .pt2 of `export`, which can run any code.

    Returns:
        What became of the images; None in the other processes of torchrun.

    Raises:
        ValueError: If an argument is not valid, nothing names the classes, checkpoints differ in them, there are no
            images, a table to go on with was begun otherwise, the calibration is of another network, or a network's
            outputs are not finite.
        OSError: If a file is missing, the weights cannot be had, or the table cannot be written.
        RuntimeError: If a library is missing, the model has no pretrained weights, or images came or went meanwhile.
    """
    require("tqdm", "medical")
    sources, out = list(map(str, sources)), Path(out)
    load = partial(
        load_for_inference,
        model,
        use_ema=use_ema,
        data_dir=data_dir,
        class_map=class_map,
        classes=classes,
        model_kwargs=model_kwargs,
        img_size=img_size,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=mean,
        std=std,
        trust_pt2=trust_pt2,
    )
    with joined() as (rank, num_processes):
        if rank > 0:  # all is checked by the first, which says what is wrong once
            done, total = broadcast(None)
        workers = check_options(precision, batch_size, workers, checkpoints)
        if rank == 0:
            check_table(out, resume)
            total = _count_images(sources)
        rules = None if calibration is None else read_calibration(calibration)
        device = take_device(device)
        networks = [load(checkpoint, device=device) for checkpoint in checkpoints or [None]]
        names = _agree_on_classes(networks, checkpoints)
        described = [_describe(network) for network in networks]
        if rules is not None:
            weights = [network["weights"] for network in described]
            rules = rules.matched_to(names, weights, [network.data_config for network in networks])
            if tta:
                _logger.warning(
                    f"calibration {calibration} is of images as they are, and tta averages over their flips"
                )
        settings = dict(
            sources=sources,
            networks=described,
            calibration=None if rules is None else rules.checksum,
            **dict(tta=tta, fuse=fuse, device=device.type, precision=precision, batch_size=batch_size),
        )
        if fuse:
            for network in networks:
                fold(network)
        table = None
        if rank == 0:
            table = Table(out, ["path", *_name_columns(names, rules), "error"], settings)
            done = table.go_on(_find_images(sources), batch_size) if resume and out.exists() else table.begin()
            broadcast((done, total))

        started = time.perf_counter()
        batches = islice(batched(_find_images(sources), batch_size), done // batch_size + rank, None, num_processes)
        predictions = predict_files(batches, networks, device=device, precision=precision, workers=workers, flips=tta)
        rounds = math.ceil((total - done) / (batch_size * num_processes))
        _fill(table, predictions, names, rules, rounds, done, total)
        if table is None:
            return None
        seconds = time.perf_counter() - started
        table.finish(total)
        return Summary(total, table.num_faults, total - done, seconds, [network.origins for network in networks])


def _fill(
    table: Table | None,
    predictions: Iterator[Predicted],
    classes: Sequence[str],
    rules: Calibration | None,
    rounds: int,
    done: int,
    total: int,
) -> None:
    """Write the table's rows, a batch of each process in each round, in the order of the processes."""
    from tqdm import tqdm

    with (
        table or nullcontext(),
        tqdm(total=total, initial=done, desc="images", unit="image", disable=table is None or None) as progress,
    ):
        for _ in range(rounds):
            batch = next(predictions, None)
            for rows in gather([] if batch is None else _make_rows(batch, classes, rules)):
                table.write(rows)
                progress.update(len(rows))


def _count_images(sources: list[str]) -> int:
    """The number of images in the sources; what is left out of them is logged."""
    left_out = []
    num_images = sum(1 for _ in _find_images(sources, left_out))
    if left_out:
        _logger.warning(f"{len(left_out)} files are no images, by their names, and left out: {shorten(left_out, 4)}")
    if not num_images:
        raise ValueError(f"sources {shorten(sources)} have no images")
    return num_images


def _find_images(sources: list[str], left_out: list[str] | None = None) -> Iterator[str]:
    """The images in the sources; whatever is named itself is taken for one."""
    for file in walk_files(sources):
        if file in sources or is_image(file):
            yield file
        elif left_out is not None:
            left_out.append(file)


def _agree_on_classes(networks: list[Trained], checkpoints: Sequence[str | Path]) -> tuple[str, ...]:
    """The names of the classes of all networks."""
    first, *others = [network.class_names for network in networks]
    for i, names in enumerate(others, 1):
        if names != first:
            raise ValueError(
                f"checkpoints differ in classes: {checkpoints[0]} has {shorten(first or ['none named'])}, "
                f"{checkpoints[i]} has {shorten(names or ['none named'])}"
            )
    if first is None:
        raise ValueError(
            f"nothing names the classes of {networks[0].name}: give data_dir (--data-dir), class_map (--class-map) or "
            "classes (--classes)"
        )
    return first


def _describe(network: Trained) -> dict:
    """All of a network that its probabilities depend on."""
    arguments = repr((network.model_args, network.data_config, network.image_mode))
    return dict(model=network.name, arguments=arguments, weights=checksum_weights(network.model.state_dict()))


def _name_columns(classes: Sequence[str], calibration: Calibration | None) -> list[str]:
    return [*name_columns(classes), *([] if calibration is None else calibration.name_columns())]


def _make_rows(batch: Predicted, classes: Sequence[str], calibration: Calibration | None) -> list[list[str]]:
    probs = batch.probs if calibration is None else calibration.apply(batch.probs)
    rows = []
    for file, image, fault in zip(batch.files, probs, batch.faults, strict=True):
        if fault is None:
            decisions = [] if calibration is None else calibration.write_cells(image)
            rows.append([file, *write_cells(image, classes), *decisions, ""])
        else:
            rows.append([file, *[""] * len(_name_columns(classes, calibration)), fault])
    return rows
