"""Tables of predictions, as `evaluate --predictions` and `predict` write them: images, their classes, probabilities.

Columns are found by their names: `file` or `path`, `class` for the true class, `group`, as the patient, for what images
of one are not independent of each other, `p_CLASS` for the probability of each class, `error` where an image could not
be read. All others, `predicted` among them, are passed over.
"""

import csv
import hashlib
import io
import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import torch

from .errors import shorten
from .files import write_text
from .text import abbreviate

__all__ = [
    "Predictions",
    "align",
    "checksum_predictions",
    "name_columns",
    "read_predictions",
    "reorder",
    "write_cells",
    "write_predictions",
]

_logger = logging.getLogger(__name__)

_PROBABILITY = "p_"  # begins the name of a column of probabilities
_LARGEST_GAP = 1e-3  # between the sum of an image's probabilities and 1, for those who round them


@dataclass(frozen=True)
class Predictions:
    """What a network says of images.

    Attributes:
        files: Name of each image.
        classes: Names of the classes.
        probs: Probability of each class for each image, (N, K), float64.
        targets: Class index of each image, (N,); None where it is not known.
        groups: Name of each image's group, as of its patient; None where none are known.
    """

    files: list[str]
    classes: list[str]
    probs: torch.Tensor
    targets: torch.Tensor | None = None
    groups: list[str] | None = None


def name_columns(classes: Sequence[str]) -> list[str]:
    """The columns of a table that `write_cells` fills."""
    return ["predicted", *(f"{_PROBABILITY}{name}" for name in classes)]


def write_cells(probs: torch.Tensor, classes: Sequence[str]) -> list[str]:
    """The predicted class of an image and the probability of each, (K,), as all tables have them."""
    return [classes[probs.argmax()], *(f"{p:.9g}" for p in probs.tolist())]


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write predictions as CSV, a row an image: what is known of it, the predicted class, the probability of each.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text(path, _format_predictions(predictions))


def checksum_predictions(predictions: Predictions) -> str:
    """SHA-256 of the file that `write_predictions` writes."""
    return hashlib.sha256(_format_predictions(predictions).encode(errors="backslashreplace")).hexdigest()


def _format_predictions(predictions: Predictions) -> str:
    known = {"file": predictions.files}
    if predictions.targets is not None:
        known["class"] = [predictions.classes[target] for target in predictions.targets.tolist()]
    if predictions.groups is not None:
        known["group"] = predictions.groups
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*known, *name_columns(predictions.classes)])
    for *cells, probs in zip(*known.values(), predictions.probs, strict=True):
        writer.writerow([*cells, *write_cells(probs, predictions.classes)])
    return lines.getvalue()


def read_predictions(path: str | Path) -> Predictions:
    """Read a table of predictions. Images that could not be read are left out, which is logged.

    Raises:
        ValueError: If it is no such table; names the row that is wrong.
        OSError: If it cannot be read.
    """
    what = f"predictions {path}"
    columns = _read_columns(Path(path), what)
    names = [name for name in ("file", "path") if name in columns]
    classes = [name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY)]
    if len(names) != 1 or len(classes) < 2:
        raise ValueError(
            f"{what} have the columns {shorten(columns)}, expected file or path, and {_PROBABILITY}CLASS for each of "
            "two classes or more, as evaluate and predict write them"
        )
    files = columns[names[0]]
    if twice := _find_repeated(files):
        raise ValueError(f"{what} have {shorten(twice, 4)} more than once: expected a row for each image")
    read = Predictions(
        files,
        classes,
        _read_probs(files, {name: columns[f"{_PROBABILITY}{name}"] for name in classes}, what),
        _read_targets(files, columns["class"], classes, what) if "class" in columns else None,
        columns.get("group"),
    )
    if "" in (read.groups or []):
        raise ValueError(f"{what} name no group for {_show(files[read.groups.index('')])}: expected one for each image")
    return read


def _read_columns(path: Path, what: str) -> dict[str, list[str]]:
    """The cells of each column of a CSV file, without rows of images that could not be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            header, *rows = [row for row in csv.reader(f) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{what} are no CSV in UTF-8: {e}") from e
    if twice := _find_repeated(header):
        raise ValueError(f"{what} have the columns {shorten(twice)} more than once")
    if uneven := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"{what} have {len(rows[uneven[0] - 1])} cells in row {uneven[0]}, expected {len(header)}")
    if "error" in header:
        at = header.index("error")
        unreadable = [row[0] for row in rows if row[at]]
        rows = [row for row in rows if not row[at]]
        if unreadable:
            _logger.warning(f"{what}: {len(unreadable)} images could not be read: left out, {shorten(unreadable, 4)}")
    if not rows:
        raise ValueError(f"{what} have no images")
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def _read_probs(files: list[str], columns: dict[str, list[str]], what: str) -> torch.Tensor:
    """Probabilities of the images, (N, K) in float64."""

    def number(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return float("nan")

    probs = torch.tensor([list(map(number, cells)) for cells in columns.values()], dtype=torch.float64).T
    valid = (probs >= 0) & (probs <= 1)
    if not valid.all():
        i, k = (~valid).nonzero()[0].tolist()
        name, cells = list(columns.items())[k]
        raise ValueError(
            f"{what} have {abbreviate(repr(cells[i]), 40)} for {_show(files[i])} in the column "
            f"{_show(_PROBABILITY + name)}, expected a probability from 0 to 1"
        )
    sums = probs.sum(1)
    i = (sums - 1).abs().argmax().item()
    if abs(sums[i] - 1) > _LARGEST_GAP:
        raise ValueError(f"{what} have probabilities for {_show(files[i])} that add up to {sums[i]:.6g}, expected 1")
    return probs


def _read_targets(files: list[str], cells: list[str], classes: list[str], what: str) -> torch.Tensor:
    numbers = {name: k for k, name in enumerate(classes)}
    if unknown := [(file, cell) for file, cell in zip(files, cells, strict=True) if cell not in numbers]:
        file, cell = unknown[0]
        raise ValueError(
            f"{what} name the true class {abbreviate(repr(cell), 40)} for {_show(file)}, expected one of those with a "
            f"column of probabilities, {shorten(classes)}"
        )
    return torch.tensor([numbers[cell] for cell in cells])


def align(predictions: Sequence[Predictions], names: Sequence[str | Path]) -> list[Predictions]:
    """Predictions of several networks for the same images, in one order of images and of classes, the first one's.

    Images are matched by their names, of which some may have more folders in front than others; classes by their names.
    True classes and groups that some of the tables have are those of all.

    Args:
        predictions: Predictions of two networks or more.
        names: What each of them is called in errors, as its file.

    Raises:
        ValueError: If they are of other images or classes, or name other true classes or groups.
    """
    first = predictions[0]
    for other, name in zip(predictions, names, strict=True):
        if set(other.classes) != set(first.classes):
            raise ValueError(
                f"{name} has the classes {shorten(other.classes)}, {names[0]} has {shorten(first.classes)}: expected "
                "predictions of the same classes"
            )
    rows = _match_images(predictions, names)
    ordered = [reorder(other, row, first.classes) for other, row in zip(predictions, rows, strict=True)]
    truths = [
        None if other.targets is None else [other.classes[k] for k in other.targets.tolist()] for other in ordered
    ]
    _check_agreement(truths, first.files, names, "class")
    _check_agreement([other.groups for other in ordered], first.files, names, "group")
    targets = next((other.targets for other in ordered if other.targets is not None), None)
    groups = next((other.groups for other in ordered if other.groups is not None), None)
    return [replace(other, files=first.files, targets=targets, groups=groups) for other in ordered]


def _match_images(predictions: Sequence[Predictions], names: Sequence[str | Path]) -> list[list[int]]:
    """For each table the rows of the first one's images, in their order."""
    shortest = min(range(len(names)), key=lambda i: statistics.fmean(map(len, predictions[i].files)))
    known = {file: i for i, file in enumerate(predictions[shortest].files)}

    def find(file: str) -> int | None:
        parts = PurePath(file).parts
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((known[name] for name in (file, *tails) if name in known), None)

    found = [{find(file): row for row, file in enumerate(other.files)} for other in predictions]
    for other, rows, name in zip(predictions, found, names, strict=True):
        lacking = [file for file, i in known.items() if i not in rows]
        if lacking or len(other.files) != len(known):
            raise ValueError(
                f"{name} has {len(other.files):,} images, {names[shortest]} has {len(known):,}"
                + (f", {_show(lacking[0])} among them, which {name} lacks" if lacking else "")
                + ": expected predictions of the same images"
            )
    return [[rows[i] for i in found[0]] for rows in found]


def reorder(predictions: Predictions, rows: Sequence[int], classes: Sequence[str]) -> Predictions:
    """The predictions with these of their images, by number, and their classes in this order."""
    rows, classes = list(rows), list(classes)
    targets, groups = predictions.targets, predictions.groups
    if targets is not None:
        targets = torch.tensor([classes.index(name) for name in predictions.classes])[targets[rows]]
    return Predictions(
        [predictions.files[i] for i in rows],
        classes,
        predictions.probs[rows][:, [predictions.classes.index(name) for name in classes]],
        targets,
        None if groups is None else [groups[i] for i in rows],
    )


def _check_agreement(
    values: Sequence[list[str] | None], files: list[str], names: Sequence[str | Path], what: str
) -> None:
    """Check that all tables which say something of the images say the same."""
    given = [(name, of_table) for name, of_table in zip(names, values, strict=True) if of_table is not None]
    for name, of_table in given[1:]:
        if of_table != given[0][1]:
            file, mine, theirs = next(row for row in zip(files, of_table, given[0][1], strict=True) if row[1] != row[2])
            raise ValueError(
                f"{_show(file)} is of the {what} {_show(mine)} in {name}, and of {_show(theirs)} in {given[0][0]}"
            )


def _show(name: str) -> str:
    return abbreviate(name, 150)


def _find_repeated(values: Iterable[str]) -> list[str]:
    seen, twice = set(), []
    for value in values:
        if value in seen:
            twice.append(value)
        seen.add(value)
    return twice
