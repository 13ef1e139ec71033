"""The order of the data: a pure function of (number of clips, seed, epoch, batch number, rank, world size).

``vidlab plan`` prints the plan of what ``train.py`` would train on with the same arguments.

Epochs are laid end to end in one endless stream of clips; batch ``number`` of rank ``r`` is a window of it.
Nothing is dropped at the end of an epoch, so a batch may hold the last clips of one epoch and the first of
the next. Any batch is found without visiting those before it, which makes resuming exact for any number of
workers. With another batch size or world size a plan starts from what another has left of an epoch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ClipRef(NamedTuple):
    """One clip of a batch: its position in the index, the epoch, and how often it was visited earlier in that epoch.

    A clip comes again in an epoch where its source has a weight above 1, or where it fills up the end of a bucket. The
    number tells these visits apart: everything random about them is keyed by it.
    """

    position: int
    epoch: int
    number: int = 0


@dataclass(frozen=True, eq=False)
class PlanState:
    """Where an order begins.

    Args:
        number: the first batch.
        epoch: the epoch of its first clip.
        remaining: uint16 (positions of the index,): how often each clip is still to be visited in ``epoch``; None is a
            whole epoch.
        visited: uint16 (positions of the index,): how often each clip was visited in ``epoch`` before, filling up
            included; None is never.
    """

    number: int = 0
    epoch: int = 0
    remaining: np.ndarray | None = None
    visited: np.ndarray | None = None

    @property
    def whole_epoch(self) -> int:
        """The first epoch that is visited whole."""
        return self.epoch + (self.remaining is not None)


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
        start: where the stream begins; what another plan has ``left``.
    """

    def __init__(
        self, num_clips: int, batch_size: int, seed: int, world_size: int = 1, start: PlanState | None = None
    ) -> None:
        if min(num_clips, batch_size, world_size) < 1 or seed < 0:
            raise ValueError(
                "num_clips, batch_size and world_size must be at least 1 and seed not negative, got "
                f"{num_clips}, {batch_size}, {world_size}, {seed}"
            )
        self.num_clips = num_clips
        self.batch_size = batch_size
        self.seed = seed
        self.world_size = world_size
        self.start = start or PlanState()
        self._orders: dict[int, np.ndarray] = {}
        self._rest = np.zeros(0, np.int32)
        if self.start.remaining is not None:
            order = self.order(self.start.epoch)
            self._rest = order[self.start.remaining[order] > 0]

    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        """The clips of global batch ``number`` (from ``start.number``) on ``rank``.

        With n batches before it they are places ``(n * world_size + rank) * batch_size`` and the following
        ``batch_size - 1`` of the stream.
        """
        if number < self.start.number or not 0 <= rank < self.world_size:
            raise ValueError(f"batch {number} of rank {rank} in a world of {self.world_size} does not exist")
        first = ((number - self.start.number) * self.world_size + rank) * self.batch_size
        return tuple(self._visit(place) for place in range(first, first + self.batch_size))

    def _visit(self, place: int) -> ClipRef:
        epoch, within = self._find(place)
        if epoch >= self.start.whole_epoch:
            return ClipRef(int(self.order(epoch)[within]), epoch)
        position = int(self._rest[within])
        return ClipRef(position, epoch, 0 if self.start.visited is None else int(self.start.visited[position]))

    def _find(self, place: int) -> tuple[int, int]:
        """The epoch of a place of the stream, and the place within what the stream has of that epoch."""
        if place < len(self._rest):
            return self.start.epoch, place
        epochs, within = divmod(place - len(self._rest), self.num_clips)
        return self.start.whole_epoch + epochs, within

    def epoch_at(self, number: int) -> int:
        """The epoch of the first clip of batch ``number``."""
        return self._find((number - self.start.number) * self.world_size * self.batch_size)[0]

    def left(self, number: int) -> PlanState:
        """What is not visited before batch ``number``: where a plan of another batch size or world size goes on."""
        if number == self.start.number:
            return self.start
        epoch, within = self._find((number - self.start.number) * self.world_size * self.batch_size)
        if epoch >= self.start.whole_epoch and within == 0:
            return PlanState(number, epoch)
        remaining, visited = np.zeros((2, self.num_clips), np.uint16)
        order = self.order(epoch)
        if epoch < self.start.whole_epoch:
            order = self._rest
            visited += 0 if self.start.visited is None else self.start.visited
        remaining[order[within:]] = 1
        visited[order[:within]] += 1
        return PlanState(number, epoch, remaining, visited)

    def order(self, epoch: int) -> np.ndarray:
        """The positions of all clips in the order ``epoch`` visits them, int32 (num_clips,)."""
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(self.num_clips), kind="stable")
            self._orders[epoch] = order.astype(np.int32)
        return self._orders[epoch]
