"""What `splits.csv` says of the images of a dataset: which belong together, and in what part of them each is."""

import bisect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from timm.utils.misc import natural_key

from ..datasets import name_in_splits, read_splits
from ..errors import shorten

__all__ = ["Columns"]

_SUBJECT, _GROUP = "subject", "group"  # columns of prepare: who is shown, and what stays in one split

_MOST_SUBGROUPS = 50  # more are numbers that want bands
_UNKNOWN = "unknown"  # the subgroup of an empty cell


class Columns:
    """The columns of `splits.csv` for some of the images of a dataset; none where there is no such file.

    Args:
        data_dir: The dataset.
        files: The images, as paths in it.

    Raises:
        ValueError: If the file is not as `prepare` writes it.
        OSError: If it cannot be read.
    """

    def __init__(self, data_dir: Path, files: Sequence[str]):
        self.path, self.splits = data_dir / "splits.csv", read_splits(data_dir)
        self.files = list(map(name_in_splits, files))
        self.cells = {
            column: [self.splits.get(file, {}).get(column, "") for file in self.files]
            for column in next(iter(self.splits.values()), {})
        }

    def name_groups(self, column: str | None) -> str:
        """The column that names groups, by default `subject`, else `group`, which `prepare` writes."""
        return column or (_SUBJECT if _SUBJECT in self.cells else _GROUP)

    def find_groups(self, asked: str | None, resample: str | None) -> list[str] | None:
        """The group of each image.

        Args:
            asked: The column that names the groups, None for the default.
            resample: What the bootstrap is to draw: `groups`, `images`, or None for groups where there are some.

        Returns:
            The groups; None for images, and where no column was asked for, and no two images are of one group.

        Raises:
            ValueError: If there is no such column, an image has no group, or there are none to draw.
        """
        column = self.name_groups(asked)
        if resample == "images":
            if asked is not None:
                raise ValueError(f"group_column {asked!r} names groups, and resample images takes none")
            return None
        groups = self.cells.get(column)
        if groups is None and asked is not None:
            raise ValueError(f"group_column {column!r} is no column of {self._describe()}")
        if without := [file for file, group in zip(self.files, groups or self.files, strict=True) if not group]:
            raise ValueError(
                f"{self.path} names no {column} for {len(without)} of the images, {shorten(without, 4)}: expected one "
                "for each; resample images (--resample images) takes them as independent"
            )
        if groups is not None and (asked is not None or len(set(groups)) < len(groups)):
            return groups
        if resample == "groups":
            raise ValueError(
                f"resample groups: {self.path} names no groups of several images; group_column (--group-column) says "
                "which column does"
            )
        return None

    def find_subgroups(self, by: str) -> dict[str, list[int]]:
        """The images of each subgroup, by their numbers.

        Args:
            by: A column, whose values are the subgroups; or a column of numbers and the edges of bands, as
                `age:40,60,80`.

        Raises:
            ValueError: If there is no such column, it has too many values, or other than numbers for bands, or the
                edges do not rise.
        """
        column, _, edges = (by, "", "") if by in self.cells else by.rpartition(":")
        if column not in self.cells:
            raise ValueError(f"by {by!r} is no column of {self._describe()}")
        cells = self.cells[column]
        if edges:
            return _cut_bands(cells, edges, f"by {by!r}")
        values = sorted(set(cells), key=lambda cell: (cell == "", natural_key(cell)))
        if len(values) > _MOST_SUBGROUPS:
            raise ValueError(
                f"by {by!r} has {len(values)} values, expected {_MOST_SUBGROUPS} or fewer: bands of numbers are "
                f"written as {by}:40,60,80"
            )
        return {value or _UNKNOWN: [i for i, cell in enumerate(cells) if cell == value] for value in values}

    def _describe(self) -> str:
        return f"{self.path}, which has {shorten(self.cells)}" if self.cells else f"{self.path}, which has none"


def _cut_bands(cells: Sequence[str], edges: str, what: str) -> dict[str, list[int]]:
    """The numbers of the cells in each band; those of empty ones behind them."""
    bounds = _read_numbers(edges.split(","), what)
    if bounds != sorted(set(bounds)):
        raise ValueError(f"{what} has edges that do not rise, expected such as 40,60,80")
    between = [f"{lower:g} to under {upper:g}" for lower, upper in zip(bounds, bounds[1:], strict=False)]
    bands = {name: [] for name in (f"under {bounds[0]:g}", *between, f"{bounds[-1]:g} and over")}
    names = list(bands)
    given = [i for i, cell in enumerate(cells) if cell]
    for i, number in zip(given, _read_numbers([cells[i] for i in given], what), strict=True):
        bands[names[bisect.bisect_right(bounds, number)]].append(i)
    unknown = [i for i, cell in enumerate(cells) if not cell]
    return bands | ({_UNKNOWN: unknown} if unknown else {})


def _read_numbers(texts: Iterable[str], what: str) -> list[float]:
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"{what} cuts numbers into bands, and {text!r:.40} is none")
    return numbers
