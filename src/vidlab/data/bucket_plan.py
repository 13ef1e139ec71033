"""The order of bucketed data: a pure function of (buckets of the clips, seed, epoch, step, rank, world size).

In an epoch every clip is visited once (or as often as its source's weight says). A step is ``world_size`` batches of
one bucket, one for each rank, so ranks never wait for each other: they have the same shapes and the same number of
steps. Any step is found without visiting those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd
from typing import Protocol, runtime_checkable

import numpy as np

from vidlab.data.buckets import CHUNK, TAILS, Assignment, Bucket
from vidlab.data.plan import Plan, Visit

# Clips that stay together when shards are shuffled, where shards are smaller (such as one file per clip).
BLOCK = 256

# Streams of random numbers of one epoch.
BLOCKS, CLIPS, STEPS = 1, 2, 3


@dataclass(frozen=True)
class Share:
    """What one bucket is of an epoch.

    Args:
        bucket: its shape.
        clips: clips in it.
        visits: places they take in an epoch; not ``clips`` where sources have weights.
        batch_size: clips of a full batch.
        steps: steps of an epoch.
        tail_size: clips of a batch of the last step; 0 where epochs are joined and no step is the last.
        repeated: places filled up with clips already seen in the epoch.
        left_out: visits of an epoch that no step has; other clips each epoch.
    """

    bucket: Bucket
    clips: int
    visits: int
    batch_size: int
    steps: int
    tail_size: int = 0
    repeated: int = 0
    left_out: int = 0


@runtime_checkable
class ClipPlan(Protocol):
    """Which clips are in which batch, and of which shape they are."""

    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which an epoch is visited."""
        ...

    @property
    def shares(self) -> tuple[Share, ...]:
        """The buckets of an epoch."""
        ...

    def batch(self, number: int, rank: int = 0) -> tuple[Visit, ...]:
        """The clips of global batch ``number`` (from 0) on ``rank``."""
        ...

    def bucket(self, number: int) -> Bucket:
        """The shape of global batch ``number`` on every rank."""
        ...

    def peers(self, number: int) -> np.ndarray:
        """Positions of all clips of that bucket: what may stand in for a clip that cannot be read."""
        ...


class JoinedPlan:
    """One bucket: ``Plan`` over its clips, whose epochs are joined, so that nothing is left over at their end.

    Args:
        assignment: the bucket of every clip; one bucket.
        batch_size: clips per batch and rank.
        seed: not negative.
        world_size: ranks.
    """

    def __init__(self, assignment: Assignment, batch_size: int, seed: int, world_size: int = 1) -> None:
        (self._bucket,) = assignment.buckets
        self.clips = np.flatnonzero(assignment.codes == 0).astype(np.int32)
        self.plan = Plan(len(self.clips), batch_size, seed, world_size)
        self.world_size = world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every clip has been visited, the last of which may go on with the next epoch."""
        return -(-len(self.clips) // (self.plan.batch_size * self.world_size))

    @property
    def shares(self) -> tuple[Share, ...]:
        """The one bucket."""
        clips = len(self.clips)
        return (Share(self._bucket, clips, clips, self.plan.batch_size, self.steps_per_epoch),)

    def batch(self, number: int, rank: int = 0) -> tuple[Visit, ...]:
        """See ``Plan.batch``."""
        return tuple(Visit(int(self.clips[place]), epoch) for place, epoch in self.plan.batch(number, rank))

    def bucket(self, number: int) -> Bucket:
        """The one bucket."""
        return self._bucket

    def peers(self, number: int) -> np.ndarray:
        """All its clips."""
        return self.clips


@dataclass(frozen=True)
class _Epoch:
    clips: np.ndarray  # int32 (visits,): positions, bucket after bucket
    steps: np.ndarray  # int32 (steps,): the steps, counted bucket after bucket, in the order they are taken


class BucketPlan:
    """Steps of several buckets, mixed.

    An epoch is made in this order: shards are shuffled and laid together to windows; clips are permuted within a window
    and appended to their buckets; buckets are cut into steps of ``world_size * batch_size`` clips; the steps that begin
    in one window are shuffled. So a clip is read near in time to others of its shard, and shapes are mixed.
    Random numbers are the raw stream of Philox4x64 with key (seed, epoch), as in ``Plan``.

    Memory: 2 bytes a clip, and 4 more for each of the two epochs that are held.

    Args:
        assignment: the bucket of every clip.
        batch_sizes: clips per batch and rank, one number per bucket, at least 1.
        seed: not negative.
        world_size: ranks.
        tail: what becomes of clips that fill no step; see ``Bucketing``.
        window: clips shuffled together, about.
        blocks: int (blocks,): first positions of the runs of clips that are read together, from 0; see ``blocks_of``.
        repeats: how often each clip is visited in an epoch; None is once.
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
        repeats: "Repeats | None" = None,
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
        counts = assignment.counts
        visits = counts if repeats is None else repeats.visits(len(counts))
        self.shares = tuple(
            _share(*facts, world_size, tail)
            for facts in zip(assignment.buckets, counts, visits, batch_sizes, strict=True)
        )
        self._first_visit = np.cumsum([0, *visits])
        self._first_step = np.cumsum([0, *(share.steps for share in self.shares)])
        if self.steps_per_epoch == 0:
            raise ValueError(f"no bucket fills a step of {world_size} batches with tail={tail}")
        self._epochs: dict[int, _Epoch] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same in each."""
        return int(self._first_step[-1])

    def batch(self, number: int, rank: int = 0) -> tuple[Visit, ...]:
        """The clips of global batch ``number`` (from 0) on ``rank``."""
        if number < 0 or not 0 <= rank < self.world_size:
            raise ValueError(f"batch {number} of rank {rank} in a world of {self.world_size} does not exist")
        epoch, place, step = self._find(number)
        share = self.shares[place]
        size = share.tail_size if step == share.steps - 1 else share.batch_size
        first = step * self.world_size * share.batch_size + rank * size
        # past the end the bucket begins again: that is the filling up
        places = self._first_visit[place] + np.arange(first, first + size) % share.visits
        return tuple(Visit(int(position), epoch) for position in self.epoch(epoch).clips[places])

    def bucket(self, number: int) -> Bucket:
        """The shape of global batch ``number`` on every rank."""
        return self.assignment.buckets[self._find(number)[1]]

    def peers(self, number: int) -> np.ndarray:
        """Positions of all clips of the bucket of batch ``number``."""
        return np.flatnonzero(self.assignment.codes == self._find(number)[1])

    def _find(self, number: int) -> tuple[int, int, int]:
        """Epoch, bucket, and the step counted within that bucket, of global batch ``number``."""
        epoch, place = divmod(number, self.steps_per_epoch)
        step = int(self.epoch(epoch).steps[place])
        bucket = int(np.searchsorted(self._first_step, step, side="right")) - 1
        return epoch, bucket, step - int(self._first_step[bucket])

    def epoch(self, epoch: int) -> _Epoch:
        """The order of one epoch; two are held."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._make(epoch)
        return self._epochs[epoch]

    def _make(self, epoch: int) -> _Epoch:
        clips = np.empty(int(self._first_visit[-1]), np.int32)
        filled = self._first_visit[:-1].copy()
        stream, ends = self._random(epoch, CLIPS), [filled - self._first_visit[:-1]]
        for positions in self._windows(epoch):
            codes = self.assignment.codes[positions]
            positions, codes = positions[codes >= 0], codes[codes >= 0]
            if self.repeats is not None:
                often = self.repeats.times(positions, epoch)
                positions, codes = np.repeat(positions, often), np.repeat(codes, often)
            shuffled = np.argsort(stream.random_raw(len(positions)), kind="stable")
            by_bucket = shuffled[np.argsort(codes[shuffled], kind="stable")]
            counts = np.bincount(codes, minlength=len(filled))
            before = np.repeat(filled - np.cumsum(counts) + counts, counts)
            clips[before + np.arange(len(by_bucket))] = positions[by_bucket]
            filled += counts
            ends.append(filled - self._first_visit[:-1])
        return _Epoch(clips, self._mixed_steps(epoch, np.array(ends[1:])))

    def _windows(self, epoch: int) -> "_Windows":
        """The positions of all clips, in windows of shuffled blocks."""
        sizes = np.diff(self.blocks, append=len(self.assignment.codes))
        order = np.argsort(self._random(epoch, BLOCKS).random_raw(len(sizes)), kind="stable")
        starts, sizes = self.blocks[order], sizes[order]
        window_of = (np.cumsum(sizes) - sizes) // self.window
        cuts = np.flatnonzero(np.diff(window_of, prepend=-1))
        return _Windows(starts, sizes, np.append(cuts, len(sizes)))

    def _mixed_steps(self, epoch: int, ends: np.ndarray) -> np.ndarray:
        """All steps, in the order of the window each begins in, shuffled within it.

        Args:
            epoch: chooses the random numbers.
            ends: (windows, buckets): visits of each bucket up to the end of each window.
        """
        window = np.empty(self.steps_per_epoch, np.uint64)
        for place, share in enumerate(self.shares):
            begins = np.arange(share.steps) * share.batch_size * self.world_size
            steps = slice(self._first_step[place], self._first_step[place + 1])
            window[steps] = np.searchsorted(ends[:, place], begins, side="right")
        window <<= np.uint64(40)
        window |= self._random(epoch, STEPS).random_raw(len(window)) >> np.uint64(24)
        return np.argsort(window, kind="stable").astype(np.int32)

    def _random(self, epoch: int, stream: int) -> np.random.Philox:
        key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
        return np.random.Philox(key=key, counter=[0, 0, 0, stream])


@dataclass(frozen=True)
class _Windows:
    """The positions of all clips, window after window."""

    starts: np.ndarray
    sizes: np.ndarray
    cuts: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        for first, last in pairwise(self.cuts.tolist()):
            sizes = self.sizes[first:last]
            yield np.repeat(self.starts[first:last] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _share(bucket: Bucket, clips: int, visits: int, batch_size: int, world_size: int, tail: str) -> Share:
    """How a bucket is cut into steps."""
    full, rest = divmod(visits, batch_size * world_size)
    if rest == 0 or tail == "drop":
        return Share(bucket, clips, visits, batch_size, full, batch_size, left_out=rest)
    size = batch_size if tail == "pad" else -(-rest // world_size)
    return Share(bucket, clips, visits, batch_size, full + 1, size, repeated=size * world_size - rest)


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


@dataclass
class Repeats:
    """How often each clip is visited in an epoch, given the weights of groups of clips.

    A group of n clips with weight w has m = round(n w) visits in every epoch (at least 1 when w is above 0). They go
    round: over any number of epochs, the visits of two clips of a group differ by at most one.

    Args:
        codes: int16 (clips,): the bucket of each clip; negative ones are not visited.
        groups: small integers (clips,): the place of each clip's weight in ``weights``.
        weights: visits per clip and epoch.
    """

    codes: np.ndarray
    groups: np.ndarray
    weights: Sequence[float]
    _clips: np.ndarray = field(init=False)
    _visits: np.ndarray = field(init=False)
    _rank: np.ndarray = field(init=False)
    _scatter: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        kinds = (int(self.codes.max(initial=0)) + 1) * len(self.weights)
        self._clips = np.zeros(kinds, np.int64)
        self._rank = np.zeros(len(self.codes), np.int32)
        for start in range(0, len(self.codes), CHUNK):
            places = np.flatnonzero(self.codes[start : start + CHUNK] >= 0) + start
            kind = self._kind(places)
            order = np.argsort(kind, kind="stable")
            counts = np.bincount(kind, minlength=kinds)
            first = np.repeat(self._clips - np.cumsum(counts) + counts, counts)
            self._rank[places[order]] = first + np.arange(len(order))
            self._clips += counts
        weights = np.tile(np.asarray(self.weights, float), kinds // len(self.weights))
        visits = np.rint(self._clips * weights).astype(np.int64)
        self._visits = np.where((weights > 0) & (self._clips > 0), np.maximum(visits, 1), 0)
        self._scatter = np.array([_coprime_near(round(0.618 * n), n) for n in self._clips.tolist()], np.int64)

    def _kind(self, positions: np.ndarray) -> np.ndarray:
        return self.codes[positions].astype(np.int64) * len(self.weights) + self.groups[positions]

    def visits(self, buckets: int) -> list[int]:
        """Visits of each bucket in an epoch."""
        sums = self._visits.reshape(-1, len(self.weights)).sum(axis=1).tolist()
        return sums + [0] * (buckets - len(sums))

    def times(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Visits of each clip at ``positions`` in ``epoch``."""
        kind = self._kind(positions)
        clips, visits = self._clips[kind], self._visits[kind]
        # multiplied by a number coprime to n, so that the clips of one epoch come from all over the group
        rank = self._rank[positions] * self._scatter[kind] % clips
        return ((epoch + 1) * visits + rank) // clips - (epoch * visits + rank) // clips


def _coprime_near(start: int, n: int) -> int:
    return next((number for number in range(max(start, 1), n) if gcd(number, n) == 1), 1)


class JointPlan:
    """Images and videos in turn: step ``every - 1`` of every ``every`` steps is one of images.

    Each has its own epochs, and an epoch of the whole is one of the videos.

    Args:
        videos: the steps of videos.
        images: the steps of images.
        every: at least 2; 9 is M4V's ratio of 1 to 8.
    """

    def __init__(self, videos: ClipPlan, images: ClipPlan, every: int) -> None:
        if every < 2 or videos.world_size != images.world_size:
            raise ValueError(f"every={every} must be at least 2, and both plans must have one world size")
        self.videos = videos
        self.images = images
        self.every = every
        self.world_size = videos.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which an epoch of videos is visited, the images among them included."""
        return self.videos.steps_per_epoch + (self.videos.steps_per_epoch - 1) // (self.every - 1)

    @property
    def shares(self) -> tuple[Share, ...]:
        """The buckets of an epoch of images and of an epoch of videos."""
        return (*self.images.shares, *self.videos.shares)

    def _find(self, number: int) -> tuple[ClipPlan, int]:
        earlier_images = number // self.every
        if number % self.every == self.every - 1:
            return self.images, earlier_images
        return self.videos, number - earlier_images

    def batch(self, number: int, rank: int = 0) -> tuple[Visit, ...]:
        """The clips of global batch ``number`` (from 0) on ``rank``."""
        plan, own = self._find(number)
        return plan.batch(own, rank)

    def bucket(self, number: int) -> Bucket:
        """The shape of global batch ``number`` on every rank."""
        plan, own = self._find(number)
        return plan.bucket(own)

    def peers(self, number: int) -> np.ndarray:
        """Positions of all clips of the bucket of batch ``number``."""
        plan, own = self._find(number)
        return plan.peers(own)
