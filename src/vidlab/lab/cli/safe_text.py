"""Untrusted text (captions, keys, names of files) as Markdown and logs may show it."""

import logging
import re
from collections.abc import Callable
from typing import Any

from vidlab.files import escaped, is_control, terminal


def markdown(text: str) -> str:
    """Text as Markdown shows it: no HTML, no link or picture, no new cell of a table, no new line."""
    text = "".join(escaped(char) if is_control(char) else char for char in text)
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
