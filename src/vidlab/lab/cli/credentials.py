"""Addresses with passwords: they stay in the process's environment, and records hold them without."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidlab.errors import UserError
from vidlab.files import write_text
from vidlab.redaction import MASK, redact

# Inherited by the processes that a command starts, such as those of trainer=ddp; one address a line.
ADDRESSES = "VIDLAB_STORE_ADDRESSES"


def withhold(arguments: Sequence[str]) -> list[str]:
    """The words of a command line without passwords, which ``complete`` finds in this process's environment."""
    known = os.environ.get(ADDRESSES, "").splitlines()
    for argument in arguments:
        value = _address_of(argument).strip("'\"")
        known += [part for part in re.split(r",(?=[\w+.-]+://)", value.strip("[]")) if redact(part) != part]
    if known:
        os.environ[ADDRESSES] = "\n".join(dict.fromkeys(known))
    return [redact(argument) if _address_of(argument) else argument for argument in arguments]


def _address_of(argument: str) -> str:
    """The value of ``logger.uri=...`` or ``tracking_uri=...``; a prompt, say, is nobody's address."""
    key, _, value = argument.partition("=")
    return value if key.endswith("uri") else ""


def complete(uri: str) -> str:
    """An address as it was given, from the one that was recorded without its password.

    Raises:
        UserError: the environment does not have it.
    """
    if MASK not in uri:
        return uri
    for known in (*os.environ.get(ADDRESSES, "").splitlines(), os.environ.get("MLFLOW_TRACKING_URI", "")):
        if known != uri and redact(known) == uri:
            return known
    raise UserError(
        f"logger.uri={uri}: records hold no passwords. Set MLFLOW_TRACKING_URI to the whole address; or, for a server, "
        "leave the user and *** out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    )


def clean_records(folder: Path) -> None:
    """Take passwords that stood in a configuration file out of what Hydra wrote about a run."""
    for path in (*(folder / ".hydra").glob("*.yaml"), *folder.parent.glob("multirun.yaml")):
        text = path.read_text("utf-8")
        if redact(text) != text:
            write_text(path, redact(text))


def clean_log() -> None:
    """Take passwords out of all that this process logs from now on, packages' messages too."""
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        parts = (record.msg, *(record.args if isinstance(record.args, tuple) else ()))
        if any("://" in str(part) for part in parts if isinstance(part, str | BaseException)):
            record.msg, record.args = redact(record.getMessage()), None
        return record

    logging.setLogRecordFactory(made)
