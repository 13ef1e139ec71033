"""Files and folders that are there whole or not at all, whatever ends the process that makes them."""

import contextlib
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of a process of another machine that shares the folder, nothing is known but that it goes on writing.
QUIET_SECONDS = 60.0


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, of this process alone, that takes its name when the block ends well.

    Those of processes that were killed are removed, and so is this one when the block fails.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_leftovers(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a full disk or a lost folder has had its message already
            aside.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what ``written_aside(path)`` left of processes that are no more."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = leftover.name.removesuffix(".tmp").rpartition(".")[2]
        with contextlib.suppress(OSError):  # another process was faster
            if owner.isdigit() and not _alive(int(owner)) and time.time() - leftover.stat().st_mtime > QUIET_SECONDS:
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
        aside.write_text(text)
    return path


def write_json(path: Path, content: Any, indent: int = 2) -> Path:
    """Write a JSON file in one step."""
    return write_text(path, json.dumps(content, indent=indent) + "\n")
