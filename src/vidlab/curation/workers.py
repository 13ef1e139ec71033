"""Shards made by one process or by several; whatever stops them, finished shards stay."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vidlab.curation.cache_writer import missing_shards, nothing_lost, open_folder, write_cache_index
from vidlab.curation.encode import Bench
from vidlab.data.cache import CacheHeader
from vidlab.data.index import INDEX_NAME
from vidlab.errors import UserError

LOCK_NAME = "writer.lock"
POLL = 0.25  # seconds between two looks at the progress of the workers


@dataclass(frozen=True)
class Encoding:
    """What an encoding did.

    Args:
        folder: the finished cache.
        made: shards written now.
        kept: shards of an earlier run.
    """

    folder: Path
    made: int
    kept: int


def encode_all(folder: Path, header: CacheHeader, make_bench: Callable[[int], Bench], processes: int) -> Encoding:
    """Make the shards that are missing, then the index.

    Args:
        folder: of the cache; made when missing.
        header: of the cache.
        make_bench: called once in each process with its number, from 0. With several processes it is sent to them.
        processes: 1 works in this process.

    Raises:
        UserError: the folder is in use or holds another cache, the disk is full, or a process was killed.
    """
    with _alone(folder):
        open_folder(folder, header)
        missing = missing_shards(folder, header)
        count = -(-header.total // header.clips_per_shard)
        if missing:
            (folder / INDEX_NAME).unlink(missing_ok=True)
            sizes = {n: min(header.clips_per_shard, header.total - n * header.clips_per_shard) for n in missing}
            with _bar(header.total, header.total - sum(sizes.values())) as show:
                if processes > 1:
                    _in_processes(missing, make_bench, processes, show, folder)
                else:
                    bench = make_bench(0)
                    for number in missing:
                        bench.make_shard(number, show)
        if not (folder / INDEX_NAME).is_file():
            write_cache_index(folder, header)
    return Encoding(folder, len(missing), count - len(missing))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time; the system lets go of the lock when a writer is killed."""
    with nothing_lost(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise UserError(f"folder={folder}: another process is writing this cache") from None


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("Encoding clips", total=total, completed=done)
        yield lambda clips: progress.advance(task, clips)


def _in_processes(
    numbers: Sequence[int],
    make_bench: Callable[[int], Bench],
    processes: int,
    show: Callable[[int], None],
    folder: Path,
) -> None:
    # a fresh interpreter in each: a fork would share the state of CUDA and of threads
    context = multiprocessing.get_context("spawn")
    done, names = context.Value("q", 0), context.Value("q", 0)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(processes, len(numbers)), context, _begin, (make_bench, processes, names, done))
    try:
        _watch([pool.submit(_make_shard, number) for number in numbers], done, show)
    except BrokenProcessPool:
        raise UserError(
            f"processes={processes}: one of them was killed, most likely for want of memory. Finished shards are kept "
            f"in {folder}. Lower processes or batch_size and run the same command again"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _watch(futures: Sequence[Future[None]], done: Any, show: Callable[[int], None]) -> None:
    pending, shown = set(futures), 0
    while pending:
        finished, pending = wait(pending, POLL, FIRST_COMPLETED)
        now = done.value
        show(now - shown)
        shown = now
        for future in finished:
            future.result()


# the state of a worker process, set once when it begins
_WORKER: dict[str, Any] = {}


def _begin(make_bench: Callable[[int], Bench], processes: int, names: Any, done: Any) -> None:
    """Prepare a worker: leave interrupts to the first process, and end when that one is gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    with names.get_lock():
        number = names.value
        names.value += 1
    try:
        _WORKER.update(bench=make_bench(number), done=done)
    except Exception as error:  # raised by the first shard: an error here would only be called a broken pool
        _WORKER.update(error=error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_shard(number: int) -> None:
    if "error" in _WORKER:
        raise _WORKER["error"]

    def advance(clips: int) -> None:
        with _WORKER["done"].get_lock():
            _WORKER["done"].value += clips

    _WORKER["bench"].make_shard(number, advance)
