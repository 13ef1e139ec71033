"""Parallel map over worker processes, with a progress bar."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from vidlab.data.workers import process_context

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    title: str,
    at_once: int,
    few: int,
    total: int | None = None,
    failed: Callable[[Job, str], Result] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """(job, ``work(job)``) for each job in order.

    Args:
        work: a function of a module.
        jobs: any number of them; taken as they are needed.
        title: of the progress bar.
        at_once: jobs taken at a time.
        few: fewer jobs than this are done in this process.
        total: number of jobs, where it is known.
        failed: what stands for the result of a job that ends its process, as a decoder with a fault may, given the job
            and what happened; None lets it stop all.
    """
    from rich.progress import track

    stream = iter(jobs)
    start = list(islice(stream, few))
    workers = min(os.cpu_count() or 1, 16)
    if len(start) < few or workers == 1:
        done = ((job, work(job)) for job in chain(start, stream))
        yield from track(done, title, total, transient=True)
        return
    yield from track(_in_groups(work, chain(start, stream), at_once, workers, failed), title, total, transient=True)


def _in_groups(
    work: Callable[[Job], Result],
    jobs: Iterator[Job],
    size: int,
    workers: int,
    failed: Callable[[Job, str], Result] | None,
) -> Iterator[tuple[Job, Result]]:
    chunk = max(1, min(32, size // (4 * workers)))
    group: list[Job] = []
    while True:
        with ProcessPoolExecutor(workers, process_context()) as pool:
            while group := group or list(islice(jobs, size)):
                results = pool.map(work, group, chunksize=chunk)
                try:
                    while group:
                        result = next(results)
                        yield group[0], result
                        del group[0]
                except BrokenProcessPool:
                    if failed is None:
                        raise
                    break
            else:
                return
        assert failed is not None
        yield from _one_by_one(work, group[: chunk * workers], failed)
        del group[: chunk * workers]


def _one_by_one(
    work: Callable[[Job], Result], jobs: Iterable[Job], failed: Callable[[Job, str], Result]
) -> Iterator[tuple[Job, Result]]:
    """Jobs one after the other in one process, so that it is known which of them ends it."""
    rest = iter(jobs)
    while True:
        with ProcessPoolExecutor(1) as pool:
            for job in rest:
                try:
                    result = pool.submit(work, job).result()
                except BrokenProcessPool:
                    yield job, failed(job, "the process that read it died")
                    break
                yield job, result
            else:
                return
