"""The plan of one bucket: epochs laid end to end in one endless stream of clips, of which batches are windows.

Nothing is dropped at the end of an epoch, so a batch may hold the last clips of one epoch and the first of the next.
"""

import numpy as np
from typing_extensions import override

from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.plan import BucketStats, ClipRef, Plan, PlanState


class SingleBucketPlan(Plan):
    """All clips of one bucket, epoch after epoch.

    Epoch ``e`` visits each clip once, in the order given by sorting the raw 64-bit output of the
    counter-based generator Philox4x64 with key (seed, e); that raw stream is fixed by NumPy's compatibility
    promise, unlike ``Generator.permutation``. Two orders are held in memory, 8 bytes per clip.

    Args:
        assignment: the bucket of every clip; one bucket, with one clip at least.
        batch_size: clips per batch and rank, at least 1.
        seed: not negative.
        world_size: ranks that share the stream, at least 1.
        start: where the stream begins; what another plan has remaining.

    Raises:
        ValueError: an argument out of range, or no clip.
    """

    def __init__(
        self, assignment: Assignment, batch_size: int, seed: int, world_size: int = 1, start: PlanState | None = None
    ) -> None:
        (self._bucket,) = assignment.buckets
        (self.num_clips,) = assignment.counts
        if min(self.num_clips, batch_size, world_size) < 1 or seed < 0:
            raise ValueError(
                "the number of clips, batch_size and world_size must be at least 1 and seed not negative, got "
                f"{self.num_clips}, {batch_size}, {world_size}, {seed}"
            )
        self.codes = assignment.codes
        self.batch_size = batch_size
        self.seed = seed
        self.world_size = world_size
        self.start = start or PlanState()
        self._orders: dict[int, np.ndarray] = {}
        self._rest = np.zeros(0, np.int32)
        if self.start.remaining is not None:
            order = self.order(self.start.epoch)
            self._rest = order[self.start.remaining[order] > 0]

    @property
    @override
    def steps_per_epoch(self) -> int:
        # the last of them may go on with the next epoch
        return -(-self.num_clips // (self.batch_size * self.world_size))

    @property
    @override
    def stats(self) -> tuple[BucketStats, ...]:
        clips = self.num_clips
        return (BucketStats(self._bucket, clips, clips, self.batch_size, self.steps_per_epoch),)

    @property
    @override
    def note(self) -> str:
        return "one bucket: epochs are joined, no clip is left over"

    @override
    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        if number < self.start.number or not 0 <= rank < self.world_size:
            raise ValueError(f"batch {number} of rank {rank} in a world of {self.world_size} does not exist")
        # with n batches before it: places (n * world_size + rank) * batch_size and the following of the stream
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

    @override
    def bucket(self, number: int) -> Bucket:
        return self._bucket

    @override
    def clips_at(self, number: int) -> int:
        return self.batch_size

    @override
    def same_bucket(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.codes == 0)

    @override
    def epoch_at(self, number: int) -> int:
        return self._find((number - self.start.number) * self.world_size * self.batch_size)[0]

    @override
    def remaining_after(self, number: int) -> PlanState:
        if number == self.start.number:
            return self.start
        epoch, within = self._find((number - self.start.number) * self.world_size * self.batch_size)
        if epoch >= self.start.whole_epoch and within == 0:
            return PlanState(number, epoch)
        remaining, visited = np.zeros((2, len(self.codes)), np.uint16)
        order = self.order(epoch)
        if epoch < self.start.whole_epoch:
            order = self._rest
            visited += 0 if self.start.visited is None else self.start.visited
        remaining[order[within:]] = 1
        visited[order[:within]] += 1
        return PlanState(number, epoch, remaining, visited)

    def order(self, epoch: int) -> np.ndarray:
        """The positions of all clips in the order ``epoch`` visits them, int32 (clips,)."""
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(self.num_clips), kind="stable").astype(np.int32)
            if self.num_clips < len(self.codes):  # of the clips of the bucket
                order = self.same_bucket(0).astype(np.int32)[order]
            self._orders[epoch] = order
        return self._orders[epoch]
