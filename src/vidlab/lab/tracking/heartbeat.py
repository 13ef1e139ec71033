"""Signs of life of a run: a file that is touched, and, more seldom, a tag in the store."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vidlab.lab.tracking.process_identity import ProcessIdentity, this_process

FILE = "heartbeat"
FILE_SECONDS, STORE_SECONDS = 10.0, 60.0
# A process that cannot be seen from here counts as ended after so long without one; clocks of machines may differ.
SILENT_SECONDS = 1800.0
BEAT, PROCESS = "vidlab.heartbeat", "vidlab.process"


class Heartbeat:
    """Touches ``<folder>/heartbeat`` every 10 s, and calls ``tell`` every minute, from a thread of its own.

    Args:
        folder: of the run.
        tell: given the tags to set in the store. What it raises is its own affair: the thread goes on.
    """

    def __init__(self, folder: Path, tell: Callable[[dict[str, str]], None]) -> None:
        self._file, self._tell = Path(folder) / FILE, tell
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second call does nothing."""
        if self._thread is None:
            self._touch()
            self._thread = threading.Thread(target=self._work, daemon=True, name="heartbeat")
            self._thread.start()

    def stop(self) -> None:
        """End, and remove the file: a run that has ended in order needs none."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _work(self) -> None:
        told = time.monotonic()
        while not self._stop.wait(FILE_SECONDS):
            self._touch()
            if time.monotonic() - told >= STORE_SECONDS:
                told = time.monotonic()
                with contextlib.suppress(Exception):
                    self._tell(beat())

    def _touch(self) -> None:
        with contextlib.suppress(OSError):  # a full disk or a lost folder is told of by what needs it
            self._file.touch()


def beat() -> dict[str, str]:
    """The tag of a sign of life: milliseconds since 1970."""
    return {BEAT: str(time.time_ns() // 1_000_000)}


def birth() -> dict[str, str]:
    """The tags with which a run of this process is begun."""
    return {PROCESS: this_process().text(), **beat()}


def process_of(tags: dict[str, str]) -> ProcessIdentity | None:
    """The process that a run's tags name."""
    return ProcessIdentity.of_text(tags.get(PROCESS, ""))
