"""Rows of tables and items of lists that others wrote: what is wrong with one does not stop the rest."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vidlab.data.names import is_utf8, reason_of, shown
from vidlab.errors import CorruptClipError, DataError

ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}

Made = TypeVar("Made")


@dataclass(frozen=True)
class TableRow:
    """A row of a table or an item of a list.

    Args:
        place: ``captions.csv, line 3``.
        cells: the values by column.
    """

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class BadItem:
    """A row or an item that cannot be used, and why.

    Args:
        name: of a clip, or a place in a list.
        reason: what is wrong with it, as the rest of a sentence that begins with its name.
    """

    name: str
    reason: str


def make_each(
    rows: Iterable[TableRow | BadItem], make: Callable[[Mapping[str, Any]], Made | None]
) -> Iterator[Made | BadItem]:
    """``make`` of the cells of each row, None passed over; where it fails, for any reason, that row is bad."""
    for row in rows:
        if isinstance(row, BadItem):
            yield row
            continue
        try:
            made = make(row.cells)
        except CorruptClipError as error:
            yield BadItem(row.place, shown(error))
        except Exception as error:  # a value of a type that nobody thought of is that row's failure
            yield BadItem(row.place, f"cannot be used ({reason_of(error)})")
        else:
            if made is not None:
                yield made


def read_lines(path: Path) -> Iterator[TableRow | BadItem]:
    """The lines of a text file that are not blank, in the column ``line``.

    Raises:
        DataError: it cannot be read, or is in another encoding than UTF-8.
    """
    refuse_encodings(path)
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{shown(path.name)}, line {number}"
        if not is_utf8(line):
            yield BadItem(place, "is not UTF-8 text; save it as UTF-8")
        elif line.strip():
            yield TableRow(place, {"line": line.strip()})


def refuse_encodings(path: Path) -> None:
    """Refuse a file that says it is in another encoding than UTF-8.

    Raises:
        DataError: it does, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    for mark, encoding in ENCODINGS.items():
        if start.startswith(mark):
            raise DataError(f"{path} is {encoding} text; save it as UTF-8")
