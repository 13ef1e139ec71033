"""The order of the data: a pure function of (number of clips, seed, epoch, batch number, rank, world size).

``python -m vidlab.data.plan [group=choice ...] [key=value ...] [world_size=N]`` prints the plan of what ``train.py``
would train on with the same arguments.

Epochs are laid end to end in one endless stream of clips; batch ``number`` of rank ``r`` is a window of it.
Nothing is dropped at the end of an epoch, so a batch may hold the last clips of one epoch and the first of
the next. Any batch is found without visiting those before it, which makes resuming exact for any number of
workers.
"""

from typing import NamedTuple

import numpy as np


class Visit(NamedTuple):
    """One clip of a batch: its position in the index and the epoch it is visited in."""

    position: int
    epoch: int


class Plan:
    """Which clips are in which batch.

    Epoch ``e`` visits each clip once, in the order given by sorting the raw 64-bit output of the
    counter-based generator Philox4x64 with key (seed, e); that raw stream is fixed by NumPy's compatibility
    promise, unlike ``Generator.permutation``. Two orders are held in memory, 8 bytes per clip.

    Args:
        num_clips: clips per epoch, at least 1.
        batch_size: clips per batch and rank, at least 1.
        seed: not negative.
        world_size: ranks that share the stream, at least 1.
    """

    def __init__(self, num_clips: int, batch_size: int, seed: int, world_size: int = 1) -> None:
        if min(num_clips, batch_size, world_size) < 1 or seed < 0:
            raise ValueError(
                "num_clips, batch_size and world_size must be at least 1 and seed not negative, got "
                f"{num_clips}, {batch_size}, {world_size}, {seed}"
            )
        self.num_clips = num_clips
        self.batch_size = batch_size
        self.seed = seed
        self.world_size = world_size
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, number: int, rank: int = 0) -> tuple[Visit, ...]:
        """The clips of global batch ``number`` (from 0) on ``rank``.

        They are stream places ``(number * world_size + rank) * batch_size`` and the following ``batch_size -
        1``.
        """
        if number < 0 or not 0 <= rank < self.world_size:
            raise ValueError(f"batch {number} of rank {rank} in a world of {self.world_size} does not exist")
        first = (number * self.world_size + rank) * self.batch_size
        places = (divmod(place, self.num_clips) for place in range(first, first + self.batch_size))
        return tuple(Visit(int(self.order(epoch)[place]), epoch) for epoch, place in places)

    def order(self, epoch: int) -> np.ndarray:
        """The positions of all clips in the order ``epoch`` visits them, int32 (num_clips,)."""
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(self.num_clips), kind="stable")
            self._orders[epoch] = order.astype(np.int32)
        return self._orders[epoch]


if __name__ == "__main__":
    # As a program it stands beside train.py, above the floors; a plain import would tie this room to those above it.
    import importlib

    importlib.import_module("vidlab.data.plan_report").main(importlib.import_module("vidlab.lab.entry"))
