"""Shards made by one process or by several; whatever stops them, finished shards stay."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidlab.curation.cache_writer import alone, missing_shards, open_folder, write_cache_index
from vidlab.curation.encode import Bench
from vidlab.curation.engine.engines import end_with_parent
from vidlab.data.storage.index import INDEX_NAME
from vidlab.data.storage.latent_cache import CacheHeader
from vidlab.errors import UserError

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


def encode_all(
    folder: Path, header: CacheHeader, make_bench: Callable[[int], Bench], processes: int = 1, start: str = "spawn"
) -> Encoding:
    """Make the shards that are missing, then the index.

    Args:
        folder: of the cache; made when missing.
        header: of the cache.
        make_bench: called once in each process with its number, from 0.
        processes: 1 works in this process.
        start: how further ones begin: ``spawn``, which CUDA needs and to which ``make_bench`` is sent pickled, or
            ``fork``, which is fast; forked processes compute with one thread each.

    Raises:
        UserError: the folder is in use or holds another cache, the disk is full, or a process was killed.
    """
    with alone(folder, "writing this cache"):
        open_folder(folder, header)
        missing = missing_shards(folder, header)
        if missing:
            (folder / INDEX_NAME).unlink(missing_ok=True)
            if processes > 1:
                _in_processes(missing, make_bench, header, Pool(processes, start, folder))
            else:
                bench = make_bench(0)
                with _bar(header, missing) as show:
                    for number in missing:
                        bench.make_shard(number, show)
        if not (folder / INDEX_NAME).is_file():
            write_cache_index(folder, header)
    return Encoding(folder, len(missing), header.shards - len(missing))


@dataclass(frozen=True)
class Pool:
    """How many processes work on which folder, and how they are started."""

    processes: int
    start: str
    folder: Path


@contextmanager
def _bar(header: CacheHeader, missing: Sequence[int]) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    todo = sum(header.clips_in(number) for number in missing)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("Encoding clips", total=header.total, completed=header.total - todo)
        yield lambda clips: progress.advance(task, clips)


def _in_processes(
    numbers: Sequence[int], make_bench: Callable[[int], Bench], header: CacheHeader, settings: Pool
) -> None:
    context: Any = multiprocessing.get_context(settings.start)
    done, names = context.Value("q", 0), context.Value("q", 0)
    before = set(multiprocessing.active_children())
    threads = 1 if settings.start == "fork" else max(1, torch.get_num_threads() // settings.processes)
    pool = ProcessPoolExecutor(
        min(settings.processes, len(numbers)), context, _begin, (make_bench, threads, names, done)
    )
    try:
        # all processes begin here, before the bar has a thread that a fork would cut off
        futures = [pool.submit(_make_shard, number) for number in numbers]
        with _bar(header, numbers) as show:
            _watch(futures, done, show)
    except BrokenProcessPool:
        raise UserError(
            f"processes={settings.processes}: one of them was killed, most likely for want of memory. Finished shards "
            f"are kept in {settings.folder}. Lower processes or batch_size and run the same command again"
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


def _begin(make_bench: Callable[[int], Bench], threads: int, names: Any, done: Any) -> None:
    """Prepare a worker: leave interrupts to the first process, and end when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(threads)
    with names.get_lock():
        number = names.value
        names.value += 1
    try:
        _WORKER.update(bench=make_bench(number), done=done)
    except Exception as error:  # raised by the first shard: an error here would only be called a broken pool
        _WORKER.update(error=error)


def _make_shard(number: int) -> None:
    if "error" in _WORKER:
        raise _WORKER["error"]

    def advance(clips: int) -> None:
        with _WORKER["done"].get_lock():
            _WORKER["done"].value += clips

    _WORKER["bench"].make_shard(number, advance)
