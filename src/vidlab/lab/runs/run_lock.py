"""One process trains a run: two that resume it would write over each other's files."""

import errno
import fcntl
import functools
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidlab.errors import UserError

NAME = "run.lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder. The processes of one run share it: rank 0 takes it for all.

    It is the operating system's, so a crash releases it at once. A lock of POSIX, unlike that of flock (and filelock),
    is not inherited by processes that load data, which live on for seconds after a kill.

    Raises:
        UserError: another process holds it; names it.
    """
    if _rank() != 0:
        yield
        return
    with held_lock(folder / NAME, "this run is being trained"):
        yield


@contextmanager
def held_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which names its holder meanwhile.

    Args:
        path: of the file, whose folder is made.
        busy: what another holder is doing with the folder.

    Raises:
        UserError: another process holds it; names it.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise UserError(f"{folder}: {busy}{_holder(path)}. {ADVICE}") from None
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"{folder}: this file system has no locks; do not resume it twice at once", stacklevel=5)
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}, file)
        file.flush()
        yield
        file.truncate(0)  # a name that is left after a crash does no harm: the lock counts


@functools.cache  # asked before this process takes the lock: to close the file later would give it back
def refuse_locked(folder: Path) -> None:
    """Look whether another process trains a run, before anything is written to its folder.

    Raises:
        UserError: another process does; names it.
    """
    if _rank() != 0:  # rank 0 of the same run may hold it
        return
    try:
        file = (folder / NAME).open("r+")
    except OSError:  # never trained here, or by nobody who may: the training job tells
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise UserError(f"{folder}: this run is being trained{_holder(folder / NAME)}. {ADVICE}") from None


def _rank() -> int:
    from lightning.pytorch.utilities import rank_zero_only  # seconds that a sweep without training need not wait

    return int(getattr(rank_zero_only, "rank", 0))


ADVICE = "Wait for its end, or stop it and resume then; a process that has crashed holds nothing."


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text("utf-8"))
        return f" by process {int(found['pid'])} on {str(found['host'])[:100]} since {str(found['since'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return " by another process"
