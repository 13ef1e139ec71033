"""The plan of several buckets: the steps of an epoch are each of one bucket, and mixed.

In an epoch every clip is visited once (or as often as its source's weight says). A step is ``world_size`` batches of
one bucket, one for each rank, so ranks never wait for each other: they have the same shapes and the same number of
steps. Any step is found without visiting those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from typing_extensions import override

from vidlab.data.samplers.assignment import CHUNK, Assignment, Bucket
from vidlab.data.samplers.plan import BucketStats, ClipRef, Plan, PlanState
from vidlab.data.samplers.source_weights import SourceWeights
from vidlab.data.samplers.steps import TAILS, Cut, stats_of

# Clips that stay together when shards are shuffled, where shards are smaller (such as one file per clip).
BLOCK = 256

# Streams of random numbers of one epoch.
BLOCKS, CLIPS, STEPS = 1, 2, 3


@dataclass(frozen=True)
class _Epoch:
    clips: np.ndarray  # int32 (visits,): positions, bucket after bucket
    steps: np.ndarray  # int32 (steps,): the steps, counted bucket after bucket, in the order they are taken
    numbers: np.ndarray  # uint16: see Cut.numbers


class BucketPlan(Plan):
    """Steps of several buckets, mixed.

    An epoch is made in this order: shards are shuffled and laid together to windows; clips are permuted within a window
    and appended to their buckets; buckets are cut into steps of ``world_size * batch_size`` clips; the steps that begin
    in one window are shuffled. So a clip is read near in time to others of its shard, and shapes are mixed.
    Random numbers are the raw stream of Philox4x64 with key (seed, epoch), as in ``SingleBucketPlan``.

    An order may start with the rest of an epoch, which is cut anew; so the buckets of its clips and the size of its
    steps may differ from those of the plan before.

    Memory: 2 bytes a clip, and 4 more for each of the two epochs that are held, 6 where clips come several times an
    epoch; 4 more after such a start.

    Args:
        assignment: the bucket of every clip.
        batch_sizes: clips per batch and rank, one number per bucket, at least 1.
        seed: not negative.
        world_size: ranks.
        tail: what becomes of clips that fill no step; see ``Bucketing``.
        window: clips shuffled together, about.
        blocks: int (blocks,): first positions of the runs of clips that are read together, from 0; see ``blocks_of``.
        repeats: how often each clip is visited in an epoch; None is once.
        start: where the order begins.

    Raises:
        ValueError: an argument out of range, or no bucket that fills a step.
    """

    def __init__(
        self,
        assignment: Assignment,
        batch_sizes: Sequence[int],
        seed: int,
        world_size: int = 1,
        tail: str = "pad",
        window: int = 65536,
        blocks: np.ndarray | None = None,
        repeats: SourceWeights | None = None,
        start: PlanState | None = None,
    ) -> None:
        if seed < 0 or min(batch_sizes, default=0) < 1 or min(world_size, window) < 1 or tail not in TAILS:
            raise ValueError(
                "batch_sizes, world_size and window must be at least 1, seed not negative and tail one of "
                f"{TAILS}, got {batch_sizes}, {world_size}, {window}, {seed}, {tail}"
            )
        self.assignment = assignment
        self.world_size = world_size
        self.seed = seed
        self.window = window
        self.blocks = np.arange(0, len(assignment.codes), BLOCK) if blocks is None else blocks
        self.repeats = repeats
        self.start = start or PlanState()
        counts = assignment.counts
        visits = counts if repeats is None else repeats.visits(len(counts))

        def cut(counts: Sequence[int], visits: Sequence[int]) -> Cut:
            facts = zip(assignment.buckets, counts, visits, batch_sizes, strict=True)
            return Cut([stats_of(*each, world_size, tail) for each in facts], world_size)

        self._whole = cut(counts, visits)
        remaining = self.start.remaining
        self._rest = cut(*self._rest_of(remaining)) if remaining is not None else Cut((), world_size)
        if self.steps_per_epoch == 0:
            raise ValueError(f"no bucket fills a step of {world_size} batches with tail={tail}")
        self._epochs: dict[int, _Epoch] = {}

    def _rest_of(self, remaining: np.ndarray) -> tuple[list[int], list[int]]:
        """Clips and visits of each bucket in what remains of the epoch of the start."""
        codes, buckets = self.assignment.codes, len(self.assignment.buckets)
        left = np.flatnonzero((remaining > 0) & (codes >= 0))
        clips = np.bincount(codes[left], minlength=buckets)
        visits = np.bincount(codes[left], weights=remaining[left], minlength=buckets)
        return clips.tolist(), visits.astype(np.int64).tolist()

    @property
    @override
    def steps_per_epoch(self) -> int:
        return self._whole.steps

    @property
    @override
    def stats(self) -> tuple[BucketStats, ...]:
        return self._whole.buckets

    @override
    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        if number < self.start.number or not 0 <= rank < self.world_size:
            raise ValueError(f"batch {number} of rank {rank} in a world of {self.world_size} does not exist")
        when, bucket, step = self._find(number)
        cut, epoch = self._cut(when), self.epoch(when)
        stats = cut.buckets[bucket]
        size = self.clips_at(number)
        first = step * self.world_size * stats.batch_size + rank * size
        within = np.arange(first, first + size)
        clips = epoch.clips[cut.visits(bucket, within)].tolist()
        numbers = epoch.numbers[cut.places(bucket, within)].tolist()
        return tuple(ClipRef(clip, when, earlier) for clip, earlier in zip(clips, numbers, strict=True))

    @override
    def bucket(self, number: int) -> Bucket:
        return self.assignment.buckets[self._find(number)[1]]

    @override
    def clips_at(self, number: int) -> int:
        when, bucket, step = self._find(number)
        stats = self._cut(when).buckets[bucket]
        return stats.tail_size if step == stats.steps - 1 else stats.batch_size

    @override
    def same_bucket(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.assignment.codes == self._find(number)[1])

    @override
    def epoch_at(self, number: int) -> int:
        return self._count(number)[0]

    @override
    def remaining_after(self, number: int) -> PlanState:
        if number == self.start.number:
            return self.start
        epoch, taken = self._count(number)
        if taken == 0:
            return PlanState(number, epoch)
        order = self.epoch(epoch)
        cut, steps, clips = self._cut(epoch), order.steps[:taken], len(self.assignment.codes)
        done = cut.visits_of(steps)
        remaining = np.bincount(order.clips[~done], minlength=clips)
        visited = np.bincount(np.append(order.clips[done], order.clips[cut.filling(steps)]), minlength=clips)
        if epoch < self.start.whole_epoch and self.start.visited is not None:
            visited += self.start.visited
        return PlanState(number, epoch, remaining.astype(np.uint16), visited.astype(np.uint16))

    def _cut(self, epoch: int) -> Cut:
        return self._rest if epoch < self.start.whole_epoch else self._whole

    def _count(self, number: int) -> tuple[int, int]:
        """The epoch of a global batch, and the steps taken in it before."""
        steps = number - self.start.number
        if steps < self._rest.steps:
            return self.start.epoch, steps
        epochs, taken = divmod(steps - self._rest.steps, self._whole.steps)
        return self.start.whole_epoch + epochs, taken

    def _find(self, number: int) -> tuple[int, int, int]:
        """The epoch of a global batch, its bucket, and its step within the bucket."""
        epoch, taken = self._count(number)
        step, first = int(self.epoch(epoch).steps[taken]), self._cut(epoch).first_step
        bucket = int(np.searchsorted(first, step, side="right")) - 1
        return epoch, bucket, step - int(first[bucket])

    def epoch(self, epoch: int) -> _Epoch:
        """The order of one epoch; two are held."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._make(epoch)
        return self._epochs[epoch]

    def _make(self, epoch: int) -> _Epoch:
        cut = self._cut(epoch)
        clips = np.empty(int(cut.first_visit[-1]), np.int32)
        filled = cut.first_visit[:-1].copy()
        stream, ends, several = self._random(epoch, CLIPS), [filled - cut.first_visit[:-1]], False
        for positions in self._windows(epoch):
            codes = self.assignment.codes[positions]
            positions, codes = positions[codes >= 0], codes[codes >= 0]
            often = self._times(positions, epoch)
            if often is not None:
                positions, codes = np.repeat(positions, often), np.repeat(codes, often)
                several |= bool(often.max(initial=0) > 1)
            shuffled = np.argsort(stream.random_raw(len(positions)), kind="stable")
            by_bucket = shuffled[np.argsort(codes[shuffled], kind="stable")]
            counts = np.bincount(codes, minlength=len(filled))
            before = np.repeat(filled - np.cumsum(counts) + counts, counts)
            clips[before + np.arange(len(by_bucket))] = positions[by_bucket]
            filled += counts
            ends.append(filled - cut.first_visit[:-1])
        until = np.array(ends[1:])
        steps = self._mixed_steps(epoch, until)
        visited = self.start.visited if epoch < self.start.whole_epoch else None
        return _Epoch(clips, steps, cut.numbers(clips, steps, until, several, visited))

    def _times(self, positions: np.ndarray, epoch: int) -> np.ndarray | None:
        """Visits of each clip at ``positions`` in ``epoch``; None is one each."""
        if self.start.remaining is not None and epoch == self.start.epoch:
            return self.start.remaining[positions]
        return None if self.repeats is None else self.repeats.times(positions, epoch)

    def _windows(self, epoch: int) -> Iterator[np.ndarray]:
        """The positions of all clips, in windows of shuffled blocks."""
        sizes = np.diff(self.blocks, append=len(self.assignment.codes))
        order = np.argsort(self._random(epoch, BLOCKS).random_raw(len(sizes)), kind="stable")
        starts, sizes = self.blocks[order], sizes[order]
        window_of = (np.cumsum(sizes) - sizes) // self.window
        cuts = np.flatnonzero(np.diff(window_of, prepend=-1))
        for first, last in pairwise(np.append(cuts, len(sizes)).tolist()):
            own = sizes[first:last]
            yield np.repeat(starts[first:last] - np.cumsum(own) + own, own) + np.arange(own.sum())

    def _mixed_steps(self, epoch: int, ends: np.ndarray) -> np.ndarray:
        """All steps, in the order of the window each begins in, shuffled within it.

        Args:
            epoch: chooses the random numbers.
            ends: (windows, buckets): visits of each bucket up to the end of each window.
        """
        cut = self._cut(epoch)
        window = np.empty(cut.steps, np.uint64)
        for place, stats in enumerate(cut.buckets):
            begins = np.arange(stats.steps) * stats.batch_size * self.world_size
            steps = slice(cut.first_step[place], cut.first_step[place + 1])
            window[steps] = np.searchsorted(ends[:, place], begins, side="right")
        window <<= np.uint64(40)
        window |= self._random(epoch, STEPS).random_raw(len(window)) >> np.uint64(24)
        return np.argsort(window, kind="stable").astype(np.int32)

    def _random(self, epoch: int, stream: int) -> np.random.Philox:
        key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
        return np.random.Philox(key=key, counter=[0, 0, 0, stream])


def blocks_of(shards: np.ndarray) -> np.ndarray:
    """First positions of the runs of clips that are read together: whole shards, small ones laid together.

    Args:
        shards: (clips,) a number per shard file.
    """
    starts = [np.zeros(min(1, len(shards)), np.int64)]
    for start in range(0, len(shards), CHUNK):
        changes = np.flatnonzero(np.diff(shards[start : start + CHUNK + 1])) + start + 1
        starts.append(changes)
    runs = np.concatenate(starts)
    return runs[np.unique(runs // BLOCK, return_index=True)[1]]
