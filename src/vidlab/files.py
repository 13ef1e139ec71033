"""Files and folders that are there whole or not at all, whatever ends the process that makes them."""

import contextlib
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Of a process of another machine that shares the folder, nothing is known but that it goes on writing.
QUIET_SECONDS = 60.0
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")  # noqa: RUF001  what spreadsheets compute, in either width
# Marks that turn the order of what follows around, so that a name reads as another.
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, of this process alone, that takes its name when the block ends well.

    When the block fails it is removed; what a process that was killed leaves is for ``remove_leftovers``.
    """
    aside = aside_of(path)
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write that fails does not say to what
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk or a lost folder has had its message already
            aside.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """A write to ``path`` that fails within the block says to what; without this it names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def aside_of(path: Path) -> Path:
    """Where this process, and no other, makes what will be ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path, quiet: float = QUIET_SECONDS) -> None:
    """Remove what processes that are no more left in a folder when they were killed while writing aside.

    Args:
        folder: where to look.
        quiet: seconds for which nothing was written to it; 0 where a lock keeps other machines out.
    """
    for leftover in folder.glob(".*.tmp"):
        owner = leftover.name.removesuffix(".tmp").rpartition(".")[2]
        with contextlib.suppress(OSError):  # another process was faster
            if owner.isdigit() and not _alive(int(owner)) and time.time() - leftover.stat().st_mtime >= quiet:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> Path:
    """Write a text file in one step."""
    with written_aside(path) as aside:
        aside.write_text(text, "utf-8")
    return path


def write_json(path: Path, content: Any, indent: int = 2) -> Path:
    """Write a JSON file in one step."""
    return write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def open_table(path: Path) -> Iterator[TextIO]:
    """A file for ``csv`` that is written in one step."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def folder_made_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its name, or whose files move into it, when the block ends well."""
    aside = aside_of(folder)
    remove_leftovers(folder.parent)
    try:
        aside.mkdir(parents=True)
        yield aside
        if not folder.exists():
            aside.replace(folder)
            return
        for path in aside.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would compute gets an apostrophe in front; numbers stay."""
    if not isinstance(value, str):
        return value
    text = "".join(escaped(char) if is_control(char) else char for char in value)
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def cells(values: Iterable[object]) -> list[object]:
    """A row for a CSV file."""
    return [cell(value) for value in values]


def named_cells(values: Mapping[str, object]) -> dict[str, object]:
    """A row for a CSV file, by column."""
    return {name: cell(value) for name, value in values.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_control(char: str) -> bool:
    """Whether a terminal obeys a character, or it turns the order of what follows around."""
    return unicodedata.category(char) in ("Cc", "Cs") or char in TURNS


def escaped(char: str) -> str:
    r"""A character as its escape, such as ``\x1b``."""
    return char.encode("unicode_escape").decode("ascii")


def terminal(text: str) -> str:
    r"""Text without what a terminal obeys: control characters other than line end and tab appear as ``\x1b``."""
    return "".join(char if char in "\n\t" or not is_control(char) else escaped(char) for char in text)
