"""Lists as people have them: CSV, TSV or Excel, of which every cell is text, and the columns that are obvious."""

import csv
import io
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field

from ..errors import first_line, require, shorten

__all__ = ["Table", "find_column", "read_table"]

_MAX_SHEET_BYTES = 256 * 2**20  # of an Excel file, unpacked

# By what a column holds, the names that say so, without blanks and signs: all of a row mean the same, earlier rows go
# before later ones.
_OBVIOUS = {
    "image": [
        "image images imageid imagename imagefile imagefilename imagepath img imgname imgpath "
        "file filename filepath fname path isicid"
    ],
    "label": ["label labels class classes classname diagnosis dx target category"],
    "group": [
        "patient patients patientid patientnumber patientno patientname subject subjectid case caseid mrn",
        "study studyid studyinstanceuid exam examid accessionnumber",
        "eye eyeid slide slideid lesion lesionid",
    ],
    "split": ["split splits set subset partition"],
}


@dataclass
class Table:
    """A list.

    Attributes:
        name: Name of its file.
        header: Names of its columns.
        rows: Cells by column, without blanks at their ends.
        numbers: Number of each row in the file.
        notes: What the reader of the list should know of how it was read.
        uneven: Rows with more cells than the header, which are in none of the others.
    """

    name: str
    header: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)

    def check_columns(self, *columns: str) -> None:
        """Check that it has these columns.

        Raises:
            ValueError: If not; names those that it has.
        """
        missing = [column for column in columns if column not in self.header]
        if missing:
            raise ValueError(f"{self.name} has columns {', '.join(self.header)}: lacks {', '.join(missing)}")


def read_table(data: bytes, name: str) -> Table:
    """Read a list.

    Args:
        data: The file: text in UTF-8, UTF-16 or Windows' encoding of western Europe, with commas, semicolons or tabs;
            or a sheet of Excel.
        name: Its name, by whose ending it is text or Excel's.

    Raises:
        ValueError: If it cannot be read, is empty, or has two columns of one name.
        RuntimeError: If openpyxl, which reads Excel, is not installed.
    """
    ending = name.lower().rpartition(".")[2]
    if ending == "xls":
        raise ValueError(f"{name} is of an old form of Excel: save it as .xlsx or .csv")
    rows, notes = _read_excel(data, name) if ending in ("xlsx", "xlsm") else _read_text(data, name)
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1)]
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise ValueError(f"{name} is empty, expected a header and a row for each image")
    header = rows[0][1]
    while not header[-1]:
        header.pop()
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise ValueError(f"{name} has more than one column {', '.join(twice)}: give each a name of its own")
    table = Table(name, [column for column in header if column], notes=notes)
    for number, row in rows[1:]:
        if any(row[len(header) :]):
            table.uneven.append(f"row {number}")
            continue
        table.numbers.append(number)
        row += [""] * (len(header) - len(row))
        table.rows.append({column: cell for column, cell in zip(header, row, strict=False) if column})
    return table


def _read_text(data: bytes, name: str) -> tuple[list[list[str]], list[str]]:
    notes = []
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError as e:
            raise ValueError(f"{name} cannot be read as text: {e}") from e
        notes.append(f"{name} is no UTF-8: read as Windows-1252")
    separator = re.match(r"sep=(.)\r?\n", text)  # a line that Excel writes and understands
    if separator:
        text = text[separator.end() :]
    try:
        # what gives the header the most columns
        delimiter = separator[1] if separator else max(",;\t", key=lambda d: len(next(_parse(text, d), ())))
        return list(_parse(text, delimiter)), notes
    except csv.Error as e:
        raise ValueError(f"{name} is no CSV file: {e}") from e


def _parse(text: str, delimiter: str):
    return csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter)


def _read_excel(data: bytes, name: str) -> tuple[list[list[str]], list[str]]:
    openpyxl = require("openpyxl", "medical")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MAX_SHEET_BYTES:
                raise ValueError(f"it unpacks to more than {_MAX_SHEET_BYTES:,} bytes")
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheets = book.worksheets
        sheets[0].reset_dimensions()  # a file may say that it has billions of cells
        rows = [[_show_cell(cell) for cell in row] for row in sheets[0].iter_rows()]
    except Exception as e:  # a damaged file fails at whatever its first wrong byte leads to
        raise ValueError(f"{name} cannot be read as an Excel file: {first_line(e)}") from e
    others = [sheet.title for sheet in sheets[1:]]
    return rows, [f"{name}: read the sheet {sheets[0].title}, not {shorten(others)}"] if others else []


def _show_cell(cell) -> str:
    """A cell of Excel as it is shown, where that tells values apart: 7 in the format 000 is 007."""
    if cell.value is None:
        return ""
    if isinstance(cell.value, bool):
        return str(cell.value).upper()
    if isinstance(cell.value, (int, float)):
        number = f"{cell.value:.0f}" if cell.value == int(cell.value) else repr(cell.value)
        zeros = cell.number_format or ""
        return number.zfill(len(zeros)) if re.fullmatch("0+", zeros) else number
    return str(cell.value)


def find_column(table: Table, role: str, among: list[str]) -> str | None:
    """The column whose name says what it holds.

    Args:
        table: The list.
        role: `image`, `label`, `group` or `split`.
        among: Columns that hold nothing else.

    Raises:
        ValueError: If several say so.
    """
    for names in _OBVIOUS[role]:
        found = [column for column in among if re.sub(r"[\W_]", "", column.casefold()) in names.split()]
        if len(found) > 1:
            raise ValueError(
                f"{table.name} has several columns that may be the {role}: {', '.join(found)}: give --{role}"
            )
        if found:
            return found[0]
    return None
