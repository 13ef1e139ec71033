"""Captions as others wrote them: nothing is split, dropped or guessed but white space, which becomes single spaces."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidlab.data.names import is_utf8
from vidlab.errors import CorruptClipError

# What ends a line of a file. Unicode has more such characters, which people paste into captions.
LINE_END = re.compile(r"\r\n|\r|\n")


def clean(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


def caption_lines(text: str) -> list[str]:
    """The non-empty lines of a text file, each of which is a caption."""
    return [line for line in map(clean, LINE_END.split(text)) if line]


def decoded(data: bytes, what: str) -> str:
    """UTF-8 text, with or without a byte-order mark.

    Args:
        data: the bytes.
        what: names them in the error: "its .txt".

    Raises:
        CorruptClipError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptClipError(
            f"{what} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None


def captions_beside(path: Path) -> list[str]:
    """The captions of a text file.

    Raises:
        CorruptClipError: it cannot be read or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptClipError(f"its {path.suffix} cannot be read ({error.strerror})") from None
    return caption_lines(decoded(data, f"its {path.suffix}"))


def captions_of(value: Any) -> list[str]:
    """The captions in a cell of a table or a value of a JSON file, white space cleaned, each one once.

    Args:
        value: a text, a number, a list of those, or nothing: None, NaN or an empty text.

    Raises:
        CorruptClipError: anything else, or text that is not Unicode.
    """
    texts: list[str] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if item is None or (isinstance(item, float) and math.isnan(item)):
            continue
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise CorruptClipError(f"its caption is of type {type(item).__name__}, not a text or a list of texts")
        try:
            text = clean(str(item))
        except ValueError:
            raise CorruptClipError("its caption is a number of thousands of digits") from None
        if not is_utf8(text):
            raise CorruptClipError("its caption is not valid Unicode (it has half of a surrogate pair)")
        texts += [text] if text else []
    return unique(texts)


def unique(texts: Sequence[str]) -> list[str]:
    """Each text once, in order."""
    return list(dict.fromkeys(texts))
