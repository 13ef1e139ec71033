"""The torch DataLoader of planned batches, decoded in this process or in workers."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from vidlab.clip import ClipBatch
from vidlab.data.dataset import ClipDataset, LoadFailure
from vidlab.data.workers import death_of_a_worker, outlive_signals, process_context
from vidlab.errors import DataError


class BatchNumbers(Sampler[int]):
    """Batch numbers, counted up from ``first()`` without end, or up to ``stop``."""

    def __init__(self, first: Callable[[], int], stop: int | None = None) -> None:
        self.first = first
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        first = self.first()
        return itertools.count(first) if self.stop is None else iter(range(first, self.stop))


class ClipLoader(DataLoader[ClipBatch | LoadFailure]):
    """A loader of planned batches; the main process passes each through ``inspect`` before handing it out.

    The order of batches does not depend on ``num_workers``. Workers use one torch thread each (torch's
    default).
    """

    def __init__(
        self,
        dataset: ClipDataset,
        numbers: BatchNumbers,
        num_workers: int,
        inspect: Callable[[ClipBatch | LoadFailure], ClipBatch],
    ) -> None:
        workers: dict[str, Any] = {}
        if num_workers:
            workers = {"persistent_workers": True, "prefetch_factor": 2, "multiprocessing_context": process_context()}
        super().__init__(
            dataset,
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals,
            **workers,
        )
        self.inspect = inspect

    def __len__(self) -> int:
        """Number of batches; an endless loader has none."""
        if not isinstance(self.sampler, BatchNumbers) or self.sampler.stop is None:
            raise TypeError("an endless loader has no length")
        return self.sampler.stop

    def __iter__(self) -> Iterator[ClipBatch]:  # type: ignore[override]
        try:
            for batch in self._loaded():
                yield self.inspect(batch)
        except Exception:
            self._end_workers()
            raise

    def _loaded(self) -> Iterator[ClipBatch | LoadFailure]:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError, RuntimeError) as error:
                message = death_of_a_worker(error)
                if message is None:
                    raise
                raise DataError(message) from error
            yield batch

    def _end_workers(self) -> None:
        """Nobody asks for more after an error. Left to the garbage collector, which closes their queues first, workers
        would not hear of their end, and the process would wait ten seconds for them."""
        end = getattr(self._iterator, "_shutdown_workers", None)
        self._iterator = None
        if end is not None:
            end()
