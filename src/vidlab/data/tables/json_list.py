"""JSON lists that others wrote: an item that cannot be read is named, and the others are read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidlab.data.names import reason_of, shown
from vidlab.data.tables.table_rows import BadItem, TableRow, refuse_encodings
from vidlab.errors import DataError

PART = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


def read_json_list(path: Path) -> Iterator[TableRow | BadItem]:
    """Items of a JSON file that is one list of objects.

    Raises:
        DataError: it is not, even without the items that cannot be read.
    """
    refuse_encodings(path)
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        items: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        items = _items(text)
        if items is None:
            raise DataError(f"{path} cannot be read as JSON ({reason_of(error)})") from None
    if not isinstance(items, list):
        raise DataError(f"{path} is not a JSON list")
    for number, item in enumerate(items):
        place = f"{shown(path.name)}, item {number}"
        if isinstance(item, dict):
            yield TableRow(place, item)
        elif isinstance(item, BadItem):
            yield BadItem(place, item.reason)
        else:
            yield BadItem(place, f"is a {type(item).__name__}, not an object")


def _items(text: str) -> list[Any] | None:
    """The items of a list one by one, a ``BadItem`` for one that cannot be read; None where the text is no list."""
    items: list[Any] = []
    depth = 0
    start = text.find("[") + 1
    if text[:start].strip() != "[":
        return None
    for part in PART.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if (depth == 1 and part[0] == ",") or depth == 0:
            piece = text[start : part.start()].strip()
            start = part.end()
            if piece or depth:
                items.append(_item(piece))
        if depth == 0:
            return items if part[0] == "]" and not text[start:].strip() else None
    return None


def _item(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadItem("", f"cannot be read ({reason_of(error)})")
