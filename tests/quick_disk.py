"""Nobody waits for the disk itself: what a killed process has written is there all the same, and no test cuts power."""

import os
import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


def wait_for_no_disk() -> None:
    """In this process and in those that are forked from it: ``os.fsync`` and commits of SQLite return at once."""
    os.fsync = lambda _: None
    event.listen(Engine, "connect", commit_at_once)


def commit_at_once(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
