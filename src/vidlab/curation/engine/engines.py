"""Who works on the partitions: this process, several, or a Ray cluster. The bytes are the same."""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vidlab.curation.engine.work import Doomed, Journal, Work, process_partition
from vidlab.errors import UserError

ENDED = "the process that read it"
"""Begins the reason of a source that ended its reader, which nobody shall read again, for a picture neither."""
OnDone = Callable[[str], None]


class Engine(ABC):
    """Works on partitions, in any order, and says of each when it is done."""

    @abstractmethod
    def run(self, work: Work, partitions: Sequence[str], on_done: OnDone, on_source: Callable[[], None]) -> None:
        """Work on partitions.

        Args:
            work: what there is to do.
            partitions: names of those that are not done.
            on_done: called here with the name of each partition that is done.
            on_source: called here after each source of each stage, where the engine knows of it.

        Raises:
            UserError: weights or a package are missing, or the disk is full.
        """


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch and OpenCV compute with one thread: sums in one order give the same bits on every machine."""
    import cv2

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@dataclass(frozen=True)
class Serial(Engine):
    """This process, one partition after the other. A video that crashes the decoder ends it: see ``Processes``."""

    def run(self, work: Work, partitions: Sequence[str], on_done: OnDone, on_source: Callable[[], None]) -> None:
        """As ``Engine.run``."""
        with one_thread():
            for name in partitions:
                process_partition(work, name, advance=on_source)
                on_done(name)


class Crashes:
    """Counts how often each source ended the process that read it.

    Args:
        work: whose journal says which source was being read.
        retries: crashes of a source that are forgiven.
    """

    def __init__(self, work: Work, retries: int) -> None:
        self._work, self._retries = work, retries
        self._counts: Counter[str] = Counter()
        self._doomed: dict[str, dict[str, str]] = {}

    def doomed(self, partition: str) -> Doomed:
        """Sources of a partition that are not to be read again."""
        return self._doomed.get(partition, {})

    def add(self, partition: str, what: str) -> None:
        """A process that worked on a partition is gone."""
        journal = Journal.of(self._work.root, partition)
        source = journal.current()
        journal.end()
        name = f"{partition}\n{source}"
        self._counts[name] += 1
        if self._counts[name] <= self._retries:
            return
        if source is None:  # between two sources: no video is to blame
            raise UserError(
                f"the process that worked on partition {partition} {what}, {self._counts[name]} times, and measured no "
                "video then. Perhaps the memory is too small for so many at once (engine.processes, engine.workers). "
                "What is finished is kept."
            )
        reason = f"{ENDED} {what}, {self._counts[name]} times"
        self._doomed.setdefault(partition, {})[source] = reason


def death_of(exit_code: int | None) -> str:
    """What became of a process, in words."""
    if exit_code is not None and exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def end_with_parent() -> None:
    """Let this process end when the one that started it is gone, whatever ended that."""
    import multiprocessing

    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def errors_and_results(work: Work, name: str, doomed: Doomed, send: Callable[[Any], None]) -> None:
    """Work on a partition in a worker, and send what comes of it: None per source, the name, or an exception."""
    try:
        process_partition(work, name, doomed, lambda: send(None))
    except Exception as error:
        send(error)
    else:
        send(name)
