"""The steps of an epoch of buckets: which visits each has, what fills it up, and how often its clips came before."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.plan import BucketStats

TAILS = ("drop", "pad", "smaller")
# Visits that are numbered together, at least: sorting so many stays within a processor's cache.
SEGMENT = 65536


class Cut:
    """An epoch cut into steps. Its visits and its steps are counted bucket after bucket.

    Args:
        buckets: how each bucket is cut.
        world_size: ranks.
    """

    def __init__(self, buckets: Sequence[BucketStats], world_size: int) -> None:
        self.buckets = tuple(buckets)
        self.world_size = world_size
        self.first_visit = np.cumsum([0, *(stats.visits for stats in buckets)])
        self.first_step = np.cumsum([0, *(stats.steps for stats in buckets)])
        # clips that fill up are counted after all visits
        self.first_filling = self.first_visit[-1] + np.cumsum([0, *(stats.repeated for stats in buckets)])

    @property
    def steps(self) -> int:
        """Steps of the epoch."""
        return int(self.first_step[-1])

    def visits(self, bucket: int, within: np.ndarray) -> np.ndarray:
        """The visits whose clips are at the places ``within`` of a bucket, in the order of its steps.

        Past its end the bucket begins again: that is the filling up.
        """
        return self.first_visit[bucket] + within % self.buckets[bucket].visits

    def places(self, bucket: int, within: np.ndarray) -> np.ndarray:
        """The same places in what ``numbers`` gives, where those that fill up have their own."""
        filling = within - self.buckets[bucket].visits
        return np.where(filling < 0, self.first_visit[bucket] + within, self.first_filling[bucket] + filling)

    def visits_of(self, steps: np.ndarray) -> np.ndarray:
        """Bool (visits,): which visits some steps have; clips that fill up do not count."""
        bucket = np.searchsorted(self.first_step, steps, side="right") - 1
        full, tail = (np.array([getattr(stats, name) for stats in self.buckets]) * self.world_size
                      for name in ("batch_size", "tail_size"))  # fmt: skip
        begins = self.first_visit[bucket] + (steps - self.first_step[bucket]) * full[bucket]
        last = steps + 1 == self.first_step[bucket + 1]
        ends = np.minimum(begins + np.where(last, tail[bucket], full[bucket]), self.first_visit[bucket + 1])
        changes = np.zeros(int(self.first_visit[-1]) + 1, np.int32)
        np.add.at(changes, begins, 1)
        np.add.at(changes, ends, -1)
        return np.cumsum(changes[:-1]) > 0

    def filling(self, steps: np.ndarray) -> np.ndarray:
        """The visits whose clips fill up some steps, int (n,)."""
        taken = np.flatnonzero(np.isin(self.first_step[1:] - 1, steps))
        found = [self.visits(bucket, self._filling(bucket)) for bucket in taken.tolist()]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _filling(self, bucket: int) -> np.ndarray:
        stats = self.buckets[bucket]
        return np.arange(stats.visits, stats.visits + stats.repeated)

    def numbers(
        self, clips: np.ndarray, steps: np.ndarray, ends: np.ndarray, several: bool, visited: np.ndarray | None
    ) -> np.ndarray:
        """How often the clip of each visit was visited earlier in the epoch, and then of those that fill up; uint16.

        Args:
            clips: (visits,): positions.
            steps: all steps in the order they are taken.
            ends: (windows, buckets): visits of each bucket up to the end of each window; all visits of a clip are in
                one window.
            several: whether clips are visited more than once, filling up aside. Without it, and without filling up,
                nothing is written to the numbers, and zeros that nobody has touched take no memory.
            visited: (positions of the index,): visits before this cut.
        """
        numbers = np.zeros(int(self.first_filling[-1]), np.uint16)
        when = np.empty(len(steps), np.int64)
        when[steps] = np.arange(len(steps))
        for bucket, stats in enumerate(self.buckets):
            if not stats.steps or not (several or stats.repeated):
                continue
            for first, last in self._segments(bucket, ends[:, bucket], several):
                within = self._in_order(bucket, first, last, when)
                numbers[self.places(bucket, within)] = count_earlier(clips[self.visits(bucket, within)])
        if visited is not None and visited.any():
            numbers[: len(clips)] += visited[clips]
            for bucket, stats in enumerate(self.buckets):
                within = self._filling(bucket)
                if stats.steps and len(within):
                    numbers[self.places(bucket, within)] += visited[clips[self.visits(bucket, within)]]
        return numbers

    def _segments(self, bucket: int, ends: np.ndarray, several: bool) -> Iterator[tuple[int, int]]:
        """First and last places of a bucket to be numbered together, the clips that fill up with the first of them."""
        stats = self.buckets[bucket]
        wanted = np.arange(min(stats.repeated, stats.visits), stats.visits + SEGMENT, SEGMENT)
        found = ends[np.minimum(np.searchsorted(ends, wanted), len(ends) - 1)]
        bounds = pairwise(np.unique(np.append(0, found)).tolist())
        return bounds if several else islice(bounds, 1)

    def _in_order(self, bucket: int, first: int, last: int, when: np.ndarray) -> np.ndarray:
        """The places of a segment in the order they are visited; those of no step come last."""
        stats = self.buckets[bucket]
        size = stats.batch_size * self.world_size
        step = np.arange(first // size, -(-last // size))
        begin, end = np.maximum(step * size, first), np.minimum((step + 1) * size, last)
        if first == 0:  # the clips that fill up the last step are the first ones
            step = np.append(step, stats.steps - 1)
            begin, end = np.append(begin, stats.visits), np.append(end, stats.visits + stats.repeated)
        taken = when[self.first_step[bucket] + np.minimum(step, stats.steps - 1)]
        order = np.argsort(np.where(step < stats.steps, taken, len(when)), kind="stable")
        begin, length = begin[order], (end - begin)[order]
        return np.repeat(begin - np.cumsum(length) + length, length) + np.arange(length.sum())


def count_earlier(positions: np.ndarray) -> np.ndarray:
    """How many visits of the same clip come before each of some visits.

    Args:
        positions: int (visits,): the clip of each, in the order they come; below 2**32.
    """
    # by halves, since numpy sorts 16 bits by radix: three times faster than 32 bits
    order = np.argsort((positions & 0xFFFF).astype(np.uint16), kind="stable")
    order = order[np.argsort((positions[order] >> 16).astype(np.uint16), kind="stable")]
    first = np.flatnonzero(np.diff(positions[order], prepend=-1))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return numbers


def stats_of(bucket: Bucket, clips: int, visits: int, batch_size: int, world_size: int, tail: str) -> BucketStats:
    """How a bucket is cut into steps; see ``Bucketing`` for ``tail``."""
    full, rest = divmod(visits, batch_size * world_size)
    if rest == 0 or tail == "drop":
        return BucketStats(bucket, clips, visits, batch_size, full, batch_size, left_out=rest)
    size = batch_size if tail == "pad" else -(-rest // world_size)
    return BucketStats(bucket, clips, visits, batch_size, full + 1, size, repeated=size * world_size - rest)
