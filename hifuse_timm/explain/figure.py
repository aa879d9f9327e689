"""Figures like the paper's Figure 4 (Section 4.5): a row for each image, a column for each network or layer."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import require
from ..files import check_writable, save_figure
from ..images import open_image, thumbnail, to_mode
from ..loading import Trained, find_device, load_trained
from ..text import LITERAL_TEXT, abbreviate, printable
from .cam import find_branches, grad_cam, resolve_layer
from .overlay import COLORS, blend, find_last_layer, preprocess, project, seen_part

__all__ = ["explain"]

_THUMBNAIL_SIZE = 448  # pixels a side of a picture in a figure, at most

_ROWS_PER_FIGURE = 20  # keeps a figure of many images within memory, and within what a viewer opens


@dataclass(frozen=True)
class _Panel:
    """What a column of a figure shows: a layer of a network."""

    network: Trained
    layer: str
    heading: str


@dataclass(frozen=True)
class _Row:
    """A row of a figure: a picture and the heat maps over it, with what is written above each."""

    picture: np.ndarray  # H W 3
    seen: list[tuple[int, int, int, int]]  # of each heat map, the part of the picture that the network saw
    heats: list[np.ndarray]  # H W
    titles: list[str]  # of the picture, empty where it stands in a row above already, and of each heat map


def explain(
    images: Iterable[str | Path],
    model: str,
    checkpoint: str | Path | None = None,
    *,
    out: str | Path,
    compare: Iterable[tuple[str, str | Path | None]] = (),
    class_name: int | str | None = None,
    layers: Sequence[str] = (),
    data_dir: str | Path | None = None,
    class_map: str | Path | None = None,
    use_ema: bool | None = None,
    device: str | torch.device | None = None,
) -> list[Path]:
    """Draw a figure like the paper's Figure 4: a row for each image, a column for each network or layer.

    Each network takes its images as it was trained: by the settings of timm's train.py where the checkpoint holds
    them, else by its pretrained config. Each heat map is scaled to its own highest place. Above it stand the class that
    the network predicts and its probability. What a network's crop cuts off is darkened. One image is in memory at a
    time, and a figure holds 20 rows: those of further images go to further files, named OUT-2, OUT-3 and so on.

    A file that cannot be read as an image is named on stderr and skipped.

    Args:
        images: Image files (`hifuse_timm.images` says which), and folders of them, searched through for all files but
            hidden ones.
        model: Name of a timm model.
        checkpoint: What timm's train.py saved, or safetensors; by default the model's pretrained weights.
        out: File to write, in a format of matplotlib's by its ending, as .png or .pdf.
        compare: Further networks, name and checkpoint each, shown by their last layer before the head.
        class_name: Class to explain, by index or name; by default each network's predicted class.
        layers: Layers of the model to show, a column each, as for `grad_cam`; by default the last one before the head.
            'all', alone, is every stage of a HiFuse in a row and every branch in a column.
        data_dir: Dataset whose dataset.json, or train folder, names the classes; pretrained weights may name their own.
        class_map: Text file with the name of a class on each line, as train.py's `--class-map`.
        use_ema: Whether to take the averaged weights that train.py keeps beside the trained ones; by default where
            there are some.
        device: As `cpu` or `cuda:1`; the machine's accelerator by default, where it has one.

    Returns:
        The files written.

    Raises:
        ValueError: If an argument is wrong, weights do not fit, or none of the files is an image.
        OSError: If a checkpoint or dataset.json cannot be read, or a file not be written.
        RuntimeError: If the extra is not installed.
    """
    require("pytorch_grad_cam", "explain")
    figure_class = require("matplotlib.figure", "explain").Figure
    rc_context = require("matplotlib", "explain").rc_context
    tqdm = require("tqdm", "explain").tqdm
    out = Path(out)
    formats = sorted(figure_class().canvas.get_supported_filetypes())
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"out {out} must end in a format of pictures: one of .{', .'.join(formats)}")
    check_writable(out)
    compare = list(compare)
    if "all" in layers and (len(layers) > 1 or compare):
        raise ValueError("layer 'all' is a grid of the model's own stages and branches: give no other layer or network")
    images = list(images)
    files = list(_find_files(images))
    if not files:
        raise ValueError(f"no files in {', '.join(map(str, images))}")

    device = find_device(device)
    load = partial(load_trained, device=device, data_dir=data_dir, class_map=class_map)
    networks = [load(model, checkpoint, use_ema=use_ema)]
    # of those without a checkpoint there are pretrained weights alone
    networks += [load(name, file, use_ema=None if file is None else use_ema) for name, file in compare]
    class_indices = {id(network): _find_class(network, class_name) for network in networks}
    panels = _make_panels(networks, layers, [checkpoint, *(file for _, file in compare)])

    written, rows = [], []

    def write() -> None:
        path = out.with_name(f"{out.stem}-{len(written) + 1}{out.suffix}") if written else out
        headings = [panel.heading for panel in next(iter(panels.values()))]
        with rc_context(LITERAL_TEXT):
            save_figure(_draw(figure_class, rows, headings), path)
        written.append(path)
        rows.clear()

    with tqdm(files, unit="image", disable=None) as progress:
        for path in progress:
            try:
                image = open_image(path)
            except (ValueError, OSError) as e:
                reason = f"{path}: {e.strerror}" if isinstance(e, OSError) and e.strerror else e
                tqdm.write(f"skipped: {printable(reason)}", file=sys.stderr)
                continue
            if rows and len(rows) + len(panels) > _ROWS_PER_FIGURE:
                write()
            rows += _explain_image(path, image, panels, class_indices)
    if not rows:
        raise ValueError("none of the files is an image")
    write()
    return written


def _find_files(images: Iterable[str | Path]) -> Iterator[Path]:
    for image in map(Path, images):
        if image.is_dir():
            inside = sorted(path for path in image.rglob("*") if path.is_file())
            yield from (p for p in inside if not any(part.startswith(".") for part in p.relative_to(image).parts))
        else:
            yield image


def _find_class(network: Trained, class_name: int | str | None) -> int | None:
    num_classes = network.model.num_classes
    if class_name is None:
        return None
    if network.class_names and class_name in network.class_names:
        return network.class_names.index(class_name)
    if str(class_name).isdecimal() and int(class_name) < num_classes:
        return int(class_name)
    known = f", or one of {', '.join(network.class_names)}" if network.class_names and num_classes <= 20 else ""
    raise ValueError(f"class {class_name} is not one of {network.name}: expected 0 to {num_classes - 1}{known}")


def _name_class(network: Trained, index: int) -> str:
    return network.class_names[index] if network.class_names else f"class {index}"


def _make_panels(
    networks: list[Trained], layers: Sequence[str], checkpoints: list[str | Path | None]
) -> dict[str, list[_Panel]]:
    """The panels of each row that an image takes, by what is written in front of their titles."""
    first = networks[0]
    if "all" in layers:
        branches = find_branches(first.model)
        if not branches:
            raise ValueError(f"layer 'all' is for HiFuse, {first.name} has no branches: name layers of it")
        rows = {}
        for branch, layer in branches.items():
            stage, _, heading = branch.partition(".")
            rows.setdefault(stage.replace("stage", "stage "), []).append(_Panel(first, layer, heading))
        return rows
    counts = Counter(network.name for network in networks)
    panels = []
    for network, checkpoint in zip(networks, checkpoints, strict=True):
        heading = abbreviate(network.name, 32)
        if counts[network.name] > 1 and checkpoint is not None:
            heading += f"\n{abbreviate(checkpoint, 30)}"
        if network is first and layers:
            panels += [
                _Panel(network, resolve_layer(network.model, i), f"{heading}\n{abbreviate(i, 30)}") for i in layers
            ]
        else:
            panels.append(_Panel(network, find_last_layer(network), heading))
    return {"": panels}


def _explain_image(
    path: Path, image: Image.Image, panels: dict[str, list[_Panel]], class_indices: dict[int, int | None]
) -> list[_Row]:
    picture = thumbnail(image, _THUMBNAIL_SIZE)
    ratio = np.array([picture.width / image.width, picture.height / image.height] * 2)
    name = abbreviate(path.name, 30) + (f"\nframe {image.info['frame']}" if "frame" in image.info else "")
    inputs = {}
    rows = []
    for label, row_panels in panels.items():
        seen, heats, titles = [], [], [name if not rows else ""]
        for panel in row_panels:
            network = panel.network
            if id(network) not in inputs:
                x, box = preprocess(to_mode(image, network.image_mode), network.transform)
                inputs[id(network)] = x, tuple(box * ratio)
            x, box = inputs[id(network)]
            index = class_indices[id(network)]
            maps, probabilities = grad_cam(network.model, x.unsqueeze(0), index, panel.layer)
            predicted = int(probabilities[0].argmax())
            title = f"{abbreviate(_name_class(network, predicted), 22)} {probabilities[0, predicted]:.1%}"
            if index not in (None, predicted):
                title += f"\nmap of {abbreviate(_name_class(network, index), 16)} {probabilities[0, index]:.1%}"
            seen.append(seen_part(box, picture.size))
            heats.append(project(maps[0], box, picture.size))
            titles.append(f"{label}: {title}" if label else title)
        rows.append(_Row(np.asarray(picture), seen, heats, titles))
    return rows


def _draw(figure_class, rows: list[_Row], headings: list[str]):
    """Draw the rows: the picture and its heat maps, one scale of colours beside them all."""
    from matplotlib.cm import ScalarMappable

    side, line_height = 2.2, 0.18  # inches
    heights = [line_height * max(heading.count("\n") + 1 for heading in headings)]
    heights += [side * min(max(row.picture.shape[0] / row.picture.shape[1], 0.3), 1.5) for row in rows]
    num_lines = sum(max(title.count("\n") + 1 for title in row.titles) for row in rows)
    figure = figure_class(
        (side * (len(headings) + 1) + 0.8, sum(heights) + line_height * num_lines), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(len(rows) + 1, len(headings) + 1, squeeze=False, gridspec_kw=dict(height_ratios=heights))
    for axis in axes.flat:
        axis.set_axis_off()

    def write(axis, text: str, **kwargs) -> None:
        # without a part in the layout, which would make room for a long text between the pictures
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", **kwargs).set_in_layout(False)

    for axis, heading in zip(axes[0, 1:], headings, strict=True):
        write(axis, heading, fontsize=8, fontweight="bold")
    for row, row_axes in zip(rows, axes[1:], strict=True):
        for axis, title in zip(row_axes, row.titles, strict=True):
            axis.set_title(title, fontsize=8, pad=3)
        if row.titles[0]:
            row_axes[0].imshow(row.picture)
        for axis, heat, seen in zip(row_axes[1:], row.heats, row.seen, strict=True):
            axis.imshow(blend(row.picture, heat, seen))
            if not heat.any():
                write(axis, "empty", color="white")
    scale = figure.colorbar(ScalarMappable(cmap=COLORS), ax=axes, aspect=30, shrink=min(1, 6 / sum(heights)), pad=0.01)
    scale.set_ticks([0, 0.5, 1])
    scale.ax.tick_params(labelsize=8)
    scale.set_label("Grad-CAM (1: each map's highest place)", fontsize=8)
    return figure
