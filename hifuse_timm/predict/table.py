"""A table in CSV that grows by whole rows, and that an interrupted run can go on with.

It is in UTF-8, each row in one line. Until all rows are there, a file beside it, named like the table and
`.resume.json`, holds the settings that it was begun with.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import shorten
from ..files import check_writable, write_json
from ..text import abbreviate, printable

__all__ = ["Table", "check_table"]


def check_table(path: Path, resume: bool) -> None:
    """Check before long work that a table can be written, and that none is lost that is not whole yet."""
    check_writable(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"out {path} is no regular file, expected one that can be gone on with")
    settings = _settings_path(path)
    if resume and path.exists() and not settings.exists():
        raise FileExistsError(
            f"out {path} has no {settings.name} beside it, so it is whole or of another origin: there is nothing to "
            "resume"
        )
    if not resume and settings.exists():
        raise FileExistsError(
            f"out {path} is not whole yet, as {settings.name} beside it says: resume it (--resume), or remove that file"
        )


def _settings_path(table: Path) -> Path:
    return table.with_name(f"{table.name}.resume.json")


class Table:
    """A table that grows by whole rows, each in one line, and what to go on with beside it until all are there."""

    def __init__(self, path: Path, columns: list[str], settings: dict):
        self.path = path
        self.columns = list(map(printable, columns))
        self.settings = json.loads(json.dumps(settings))
        self.num_rows = self.num_faults = 0

    def __enter__(self) -> "Table":
        self._file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def begin(self) -> int:
        """Write the header, and then the settings: what an older table holds is gone before it could be gone on with.

        Returns:
            The number of rows, 0.
        """
        self.path.write_text(self._encode([self.columns]), encoding="utf-8", newline="")
        write_json(_settings_path(self.path), self.settings)
        return 0

    def go_on(self, files: Iterator[str], batch_size: int) -> int:
        """Keep what whole batches there are of a table, so that the others are as they would have been.

        Returns:
            The number of rows that are kept.

        Raises:
            ValueError: If the table was begun otherwise, or is of other images.
        """
        self._compare_settings()
        with self.path.open("r+b") as file:
            if file.readline() != self._encode([self.columns]).encode():
                raise ValueError(f"out {self.path} has other columns, expected {shorten(self.columns)}")
            num_rows, num_faults, end = 0, 0, file.tell()
            while (line := file.readline()).endswith(b"\n"):
                row, expected = next(csv.reader([line.decode(errors="replace")])), next(files, None)
                if len(row) != len(self.columns) or row[0] != printable(expected):
                    raise ValueError(
                        f"out {self.path} has {abbreviate(row[0], 200)} in row {num_rows + 1}, where the sources have "
                        f"{'none' if expected is None else abbreviate(expected, 200)}: they have changed since"
                    )
                num_rows += 1
                num_faults += row[-1] != ""
                if num_rows % batch_size == 0:
                    self.num_rows, self.num_faults, end = num_rows, num_faults, file.tell()
            file.truncate(end)
        return self.num_rows

    def _compare_settings(self) -> None:
        path = _settings_path(self.path)
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            others = [key for key, value in self.settings.items() if begun[key] != value]
        except (ValueError, RecursionError, LookupError, TypeError) as e:
            raise ValueError(f"{path} is not as predict writes it: remove it to begin anew") from e
        if others:
            key = others[0]
            raise ValueError(
                f"out {self.path} was begun with {key} {abbreviate(begun[key], 200)}, now it is "
                f"{abbreviate(self.settings[key], 200)}: resume with the same, or remove {path.name} to begin anew"
            )

    def write(self, rows: list[list[str]]) -> None:
        """Write rows, so that they are in the file."""
        self._file.write(self._encode(rows))
        self._file.flush()
        self.num_rows += len(rows)
        self.num_faults += sum(row[-1] != "" for row in rows)

    def finish(self, total: int) -> None:
        """Remove what the table could be gone on with, if it has all rows."""
        if self.num_rows != total:
            raise RuntimeError(
                f"out {self.path} has {self.num_rows} rows for {total} images: some came or went meanwhile"
            )
        _settings_path(self.path).unlink()

    @staticmethod
    def _encode(rows: list[list[str]]) -> str:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(map(printable, row) for row in rows)
        return lines.getvalue()
