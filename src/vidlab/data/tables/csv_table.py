"""CSV files that others wrote: a row with wrong quotes or cells is named, and takes no other row with it."""

import csv
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

from vidlab.data.names import is_utf8, shown
from vidlab.data.tables.table_rows import BadItem, TableRow, refuse_encodings
from vidlab.errors import DataError

log = logging.getLogger(__name__)

# Lines that one row may have: more are taken for a quote that is not closed.
MOST_LINES = 1000
# Characters of one cell; Panda-70M's lists pass the csv module's own limit of 131072.
MOST_CHARACTERS = 1 << 24
UNCLOSED = 'has a double quote (") too many or too few; write a quote inside a text twice, and the text between quotes'
QUOTED = re.compile(r'\s*"([^"]*)"\s*')


class CsvTable:
    """A CSV file in UTF-8, with commas between cells and texts between double quotes where they need them.

    A quote that does not begin a cell, or that begins one and ends before the cell does, is part of the text.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read, is in another encoding, or its first line cannot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_encodings(path)
        try:
            with self._open() as file:
                first = next(_records(file), _Record(1, []))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        cells = _cells(first, len(first.cells or ()))
        if isinstance(cells, str):
            raise DataError(f"{path} {cells} (line {first.line})")
        self.columns = cells

    def _open(self) -> TextIO:
        return self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")

    def rows(self, needed: Sequence[str]) -> Iterator[TableRow | BadItem]:
        """All rows but empty ones; those that lack one of the ``needed`` columns, the first naming the row, are bad."""
        key, last = self.columns.index(needed[0]), max(map(self.columns.index, needed))
        limit = csv.field_size_limit(MOST_CHARACTERS)
        try:
            with self._open() as file:
                records = _records(file, lambda record: _swallows(record, key, len(self.columns)))
                next(records, None)
                empty = 0
                for record in records:
                    if record.cells is None or any(map(str.strip, record.cells)):
                        yield self._row(record, needed, last)
                    else:
                        empty += 1
            if empty:
                log.warning("%s: %d empty rows are passed over", self.path, empty)
        finally:
            csv.field_size_limit(limit)

    def _row(self, record: "_Record", needed: Sequence[str], last: int) -> TableRow | BadItem:
        place = f"{shown(self.path.name)}, line {record.line}"
        cells = _cells(record, len(self.columns), last + 1)
        if isinstance(cells, str):
            return BadItem(place, cells)
        values = dict(zip(self.columns, cells, strict=False))
        if not all(is_utf8(values[column]) for column in needed):
            return BadItem(place, "is not UTF-8 text; save it as UTF-8")
        return TableRow(place, values)


@dataclass(frozen=True)
class _Record:
    """The cells of the row that begins at ``line``, or None and the line itself where quotes are not as they must."""

    line: int
    cells: list[str] | None
    lines: Sequence[str] = ()


class _Lines:
    """Lines of a file, those of the present row remembered, so that all but its first can be read again."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.line = 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self.taken) == MOST_LINES:
            raise csv.Error("a row of too many lines")
        line = self._again.popleft() if self._again else next(self._file)
        self.taken.append(line)
        return line

    def begin(self) -> None:
        self.line += len(self.taken)
        self.taken = []

    def reread(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))
        self.taken = self.taken[:1]


def _records(file: TextIO, swallows: Callable[[_Record], bool] = lambda record: False) -> Iterator[_Record]:
    """Rows; after one whose quotes are wrong, or that ``swallows`` others, reading goes on with its second line."""
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            record = _Record(lines.line, next(reader), lines.taken)
        except StopIteration:
            return
        except csv.Error:
            record = _Record(lines.line, None, lines.taken)
        if record.cells is None or (len(lines.taken) > 1 and swallows(record)):
            lines.reread()
            record = _Record(record.line, None, lines.taken)
        yield record


def _swallows(record: _Record, key: int, columns: int) -> bool:
    """Whether a row of several lines holds others: it has too few cells, or one of its lines is named as it is."""
    cells = record.cells or []
    if len(cells) < columns:
        return True
    kind = _kind(cells[key])
    if kind is None:
        return False
    for line in record.lines[1:]:
        alone = next(csv.reader([line]), [])
        if len(alone) == columns and _kind(alone[key]) == kind:
            return True
    return False


def _kind(name: str) -> str | None:
    """What the names of rows may have in common: a suffix, or that they are numbers. None for other texts."""
    name = name.strip()
    if name.isdigit():
        return "number"
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix and " " not in suffix else None


def _cells(record: _Record, columns: int, needed: int = 0) -> list[str] | str:
    """The cells of a row, or what is wrong with it."""
    cells = record.cells
    if cells is None:
        cells = _unquoted(record.lines[0], columns)
        if cells is None:
            return UNCLOSED
    while len(cells) > columns and not cells[-1].strip():
        cells = cells[:-1]
    if needed <= len(cells) <= columns:
        return cells
    if len(cells) < needed:
        return f"has {len(cells)} of {columns} cells"
    return f"has {len(cells)} cells where the header has {columns}; write a text with commas between double quotes"


def _unquoted(line: str, columns: int) -> list[str] | None:
    """Cells of a line whose quotes belong to its texts; None where they may be meant otherwise."""
    if line.count('"') % 2 or '\\"' in line or '""' in line:
        return None
    cells = next(csv.reader([line], quoting=csv.QUOTE_NONE), [])
    if columns and len(cells) != columns:
        return None
    return [match[1] if (match := QUOTED.fullmatch(cell)) else cell for cell in cells]


def read_table(path: Path, needed: Sequence[str]) -> Iterator[TableRow | BadItem]:
    """Rows of a CSV file that has the columns, the first of which names a row.

    Raises:
        DataError: it lacks a column, cannot be read, or is in another encoding.
    """
    table = CsvTable(path)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the columns {missing}; it has {table.columns}")
    yield from table.rows(needed)
