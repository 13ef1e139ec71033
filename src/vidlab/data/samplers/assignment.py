"""Buckets, and the bucket of every clip: the few shapes that a data set is trained in, one to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REASONS = ("too few frames", "too small", "extreme aspect ratio")

# Rows looked at together: temporary arrays stay below 100 MB for an index of any length.
CHUNK = 1 << 20


@dataclass(frozen=True, order=True)
class Bucket:
    """The shape of every clip of a batch: frames, and pixels of height and width."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Move:
    """Clips of a bucket too rare to fill a step, which are trained in a smaller one."""

    clips: int
    origin: Bucket
    target: Bucket


@dataclass(frozen=True)
class Assignment:
    """The bucket of every clip of an index.

    Args:
        buckets: the buckets in use, sorted.
        codes: int16 (clips,): the place in ``buckets``, or ``-1 - r`` for a clip dropped because of ``REASONS[r]``.
        moves: what ``merge_rare`` did.
    """

    buckets: tuple[Bucket, ...]
    codes: np.ndarray
    moves: tuple[Move, ...] = ()

    @classmethod
    def same(cls, bucket: Bucket, clips: int) -> "Assignment":
        """All clips in one bucket; takes no memory."""
        return cls((bucket,), np.broadcast_to(np.int16(0), clips))

    @property
    def counts(self) -> list[int]:
        """Clips of each bucket."""
        return [int(clips) for clips in self._tally[len(REASONS) :]]

    @property
    def dropped(self) -> dict[str, int]:
        """Clips in no bucket, by reason; reasons that hold for none are left out."""
        found = zip(REASONS, self._tally[: len(REASONS)][::-1], strict=True)
        return {reason: int(clips) for reason, clips in found if clips}

    @property
    def _tally(self) -> np.ndarray:
        tally = np.zeros(len(REASONS) + len(self.buckets), np.int64)
        for start in range(0, len(self.codes), CHUNK):
            shifted = self.codes[start : start + CHUNK] + np.int16(len(REASONS))
            tally += np.bincount(shifted, minlength=len(tally))
        return tally

    def merge_rare(self, least: Sequence[int]) -> "Assignment":
        """Move the clips of buckets with fewer than ``least`` clips to the largest bucket that they cover.

        They are never enlarged: the target has no more frames, rows or columns; and no video becomes an image. A rare
        bucket without such a target stays. Larger buckets go first, so that several rare ones may make a common one
        together.

        Args:
            least: clips a bucket must have, one number per bucket.
        """
        counts, moved = self.counts, list(range(len(self.buckets)))
        moves = []
        for rare in sorted(moved, key=lambda place: _volume(self.buckets[place]), reverse=True):
            if not 0 < counts[rare] < least[rare]:
                continue
            origin = self.buckets[rare]
            targets = [place for place, target in enumerate(self.buckets)
                       if counts[place] and place != rare and _covers(origin, target)]  # fmt: skip
            if targets:
                best = max(targets, key=lambda place: (_volume(self.buckets[place]), place))
                moves.append(Move(counts[rare], origin, self.buckets[best]))
                counts[best], counts[rare] = counts[best] + counts[rare], 0
                moved = [best if place == rare else place for place in moved]
        return self._renumbered(moved, tuple(moves))

    def _renumbered(self, moved: list[int], moves: tuple[Move, ...]) -> "Assignment":
        if not moves:
            return self
        kept = sorted(set(moved))
        table = np.array([kept.index(place) for place in moved] + [-1 - r for r in reversed(range(len(REASONS)))])
        # negative codes count from the end of the table, where they find themselves
        codes = table.astype(np.int16)[self.codes]
        return Assignment(tuple(self.buckets[place] for place in kept), codes, self.moves + moves)


def _volume(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width


def _covers(origin: Bucket, target: Bucket) -> bool:
    fits = target.frames <= origin.frames and target.height <= origin.height and target.width <= origin.width
    return fits and not target.frames == 1 < origin.frames
