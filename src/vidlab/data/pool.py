"""Work shared out to processes, with a progress bar."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    title: str,
    at_once: int,
    few: int,
    total: int | None = None,
) -> Iterator[tuple[Job, Result]]:
    """(job, ``work(job)``) for each job in order.

    Args:
        work: a function of a module.
        jobs: any number of them; taken as they are needed.
        title: of the progress bar.
        at_once: jobs taken at a time.
        few: fewer jobs than this are done in this process.
        total: number of jobs, where it is known.
    """
    from rich.progress import track

    stream = iter(jobs)
    start = list(islice(stream, few))
    workers = min(os.cpu_count() or 1, 16)
    if len(start) < few or workers == 1:
        done = ((job, work(job)) for job in chain(start, stream))
        yield from track(done, title, total, transient=True)
        return
    with ProcessPoolExecutor(workers) as pool:
        chunk = max(1, min(32, at_once // (4 * workers)))
        run = partial(pool.map, work, chunksize=chunk)
        yield from track(_in_groups(run, chain(start, stream), at_once), title, total, transient=True)


def _in_groups(
    run: Callable[[list[Job]], Iterable[Result]], jobs: Iterator[Job], size: int
) -> Iterator[tuple[Job, Result]]:
    while group := list(islice(jobs, size)):
        yield from zip(group, run(group), strict=True)
