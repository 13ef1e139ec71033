"""Which process it was: after a kill its number alone may be that of another."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, on record.

    Args:
        host: name of the machine, for people.
        place: within which process numbers mean something: the boot of a machine, and the namespace of a container.
        pid: its number there.
        started: when it was started: on Linux in clock ticks since the boot, elsewhere in seconds since 1970.
    """

    host: str
    place: str
    pid: int
    started: float

    def alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from here, such as of another machine."""
        if self.place != _place():
            return None
        started = _started(self.pid)
        return started is not None and abs(started - self.started) <= 1.0

    @staticmethod
    def read(record: object) -> "ProcessIdentity | None":
        """From ``asdict``; None for anything else."""
        if not isinstance(record, Mapping):
            return None
        try:
            found = {"host": str(record["host"]), "place": str(record["place"])}
            return ProcessIdentity(**found, pid=int(record["pid"]), started=float(record["started"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def text(self) -> str:
        """As ``of_text`` takes it."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_text(text: str) -> "ProcessIdentity | None":
        """From ``text``; None for anything else."""
        try:
            return ProcessIdentity.read(json.loads(text))
        except (ValueError, RecursionError):
            return None


def this_process() -> ProcessIdentity:
    """The identity of the process that asks."""
    return ProcessIdentity(socket.gethostname(), _place(), os.getpid(), _started(os.getpid()) or 0.0)


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text('utf-8').strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> float | None:
    """When a process was started; None where there is none, or only what is left of one until its parent looks."""
    if sys.platform != "linux":
        import psutil

        return psutil.Process(pid).create_time() if psutil.pid_exists(pid) else None
    try:
        # pid (name) state ppid ...: a name may hold brackets and spaces; the start is field 22 of proc(5)
        state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else float(fields[18])
