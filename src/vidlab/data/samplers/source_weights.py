"""How often a clip is visited in an epoch, where sources have weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np

from vidlab.data.samplers.assignment import CHUNK


@dataclass
class SourceWeights:
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
