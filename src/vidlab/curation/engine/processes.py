"""Several processes of this machine work on partitions; one that dies takes only its source with it."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from typing_extensions import override

from vidlab.curation.engine.engines import (
    Crashes,
    Engine,
    OnDone,
    death_of,
    end_with_parent,
    errors_and_results,
    one_thread,
)
from vidlab.curation.engine.work import Doomed, Work
from vidlab.errors import UserError


@dataclass(frozen=True)
class Processes(Engine):
    """Processes of this machine, each with models of its own.

    A source whose reader dies, of a fault in a decoder or for want of memory, is tried again in a new process, then
    rejected by name; the rest goes on.

    Args:
        processes: how many; None is one per processor.
        crashes: deaths of a source's reader that are forgiven.
        silence: seconds without a sign of life, at a source of a stage, after which a worker is ended as dead; None
            waits for ever.
        start: how processes begin, ``spawn``, ``forkserver`` or ``fork``.

    Raises:
        UserError: a setting is out of range.
    """

    processes: int | None = None
    crashes: int = 2
    silence: float | None = None
    start: str = "forkserver"

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise UserError(f"engine.processes={self.processes}: it must be 1 or more, or null.")
        if self.crashes < 0:
            raise UserError(f"engine.crashes={self.crashes}: it must be 0 or more.")
        if self.silence is not None and self.silence <= 0:
            raise UserError(f"engine.silence={self.silence}: it must be above 0, or null.")
        if self.start not in multiprocessing.get_all_start_methods():
            raise UserError(f"engine.start={self.start}: choose {', '.join(multiprocessing.get_all_start_methods())}.")

    @override
    def run(self, work: Work, partitions: Sequence[str], on_done: OnDone, on_source: Callable[[], None]) -> None:
        count = self.processes or _processors()
        pool = _Pool(self, work, deque(partitions), on_done, on_source)
        try:
            pool.run(min(count, len(partitions)))
        finally:
            pool.stop()


def _processors() -> int:
    """That this process may use; macOS and Windows do not tell, so all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    partition: str


class _Pool:
    def __init__(
        self, engine: Processes, work: Work, waiting: deque[str], on_done: OnDone, on_source: Callable[[], None]
    ) -> None:
        self.engine, self.work, self.waiting = engine, work, waiting
        self.on_done, self.on_source = on_done, on_source
        self.context: Any = multiprocessing.get_context(engine.start)
        self.crashes = Crashes(work, engine.crashes)
        self.workers: dict[Connection, _Worker] = {}

    def run(self, count: int) -> None:
        for _ in range(count):
            self._begin(self.waiting.popleft())
        while self.workers:
            ready = wait(list(self.workers), self.engine.silence)
            if not ready:
                for worker in self.workers.values():
                    worker.process.kill()
                continue
            for pipe in ready:
                assert isinstance(pipe, Connection)
                self._hear(self.workers[pipe])

    def _begin(self, partition: str) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.work), daemon=True)
        process.start()
        theirs.close()
        self.workers[ours] = _Worker(process, ours, partition)
        ours.send((partition, self.crashes.doomed(partition)))

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.pipe.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if said is None:
            self.on_source()
        elif isinstance(said, Exception):
            raise said
        else:
            self.on_done(said)
            self._next(worker)

    def _next(self, worker: _Worker) -> None:
        if self.waiting:
            worker.partition = self.waiting.popleft()
            worker.pipe.send((worker.partition, self.crashes.doomed(worker.partition)))
        else:
            self._close(worker)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        self.crashes.add(worker.partition, death_of(worker.process.exitcode))
        self._close(worker)
        self._begin(worker.partition)

    def _close(self, worker: _Worker) -> None:
        del self.workers[worker.pipe]
        worker.pipe.close()

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.process.kill()  # state is whole at any moment
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()


def _serve(pipe: Connection, work: Work) -> None:
    """Work on the partitions that come through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which sends it to all processes
    end_with_parent()
    try:
        with one_thread():
            while True:
                name: str
                doomed: Doomed
                name, doomed = pipe.recv()
                errors_and_results(work, name, doomed, pipe.send)
    except (EOFError, ConnectionError):
        return
