"""Text of strangers, captions, keys, names of files, as a terminal, a spreadsheet and Markdown may show it."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")  # noqa: RUF001  what spreadsheets compute, in either width
# Marks that turn the order of what follows around, so that a name reads as another.
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def terminal(text: str) -> str:
    r"""Text without what a terminal obeys: control characters other than line end and tab appear as ``\x1b``."""
    return "".join(char if char in "\n\t" or not _is_control(char) else _escaped(char) for char in text)


def cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would compute gets an apostrophe in front; numbers stay."""
    if not isinstance(value, str):
        return value
    text = "".join(_escaped(char) if _is_control(char) else char for char in value)
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def cells(values: Iterable[object]) -> list[object]:
    """A row for a CSV file."""
    return [cell(value) for value in values]


def named_cells(values: Mapping[str, object]) -> dict[str, object]:
    """A row for a CSV file, by column."""
    return {name: cell(value) for name, value in values.items()}


def markdown(text: str) -> str:
    """Text as Markdown shows it: no HTML, no link or picture, no new cell of a table, no new line."""
    text = "".join(_escaped(char) if _is_control(char) else char for char in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)


def safe_records(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A factory of log records whose messages a terminal may show, for ``logging.setLogRecordFactory``."""

    def safe(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            text = record.getMessage()
        except Exception:  # a wrong format, which logging itself reports where it is shown
            return record
        shown = terminal(text)
        if shown != text:
            record.msg, record.args = shown, None
        return record

    return safe


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or char in TURNS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
