"""The plan of the training clips: an interface that says which clips form each batch, and in which shape.

A plan is a pure function of (index, seed, batch number, rank, world size). Every plan implements ``Plan``: one bucket
(``SingleBucketPlan``), several mixed, with weighted sources or without (``BucketPlan``), images between videos
(``InterleavedPlan``). Each can go on from the ``PlanState`` that a plan of other batch sizes or world sizes stopped in.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from vidlab.data.samplers.assignment import Bucket


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
    """How far a plan has come: where another one goes on.

    Args:
        number: the first batch that is not taken.
        epoch: the epoch of its first clip.
        remaining: uint16 (positions of the index,): how often each clip is still to be visited in ``epoch``; None is a
            whole epoch.
        visited: uint16 (positions of the index,): how often each clip was visited in ``epoch`` before, filling up
            included; None is never.
        parts: the states of videos and of images, where they take turns, each counting its own batches.
    """

    number: int = 0
    epoch: int = 0
    remaining: np.ndarray | None = None
    visited: np.ndarray | None = None
    parts: tuple["PlanState", "PlanState"] | None = None

    @property
    def whole_epoch(self) -> int:
        """The first epoch that is visited whole."""
        return self.epoch + (self.remaining is not None)

    def interleaved(self, every: int) -> tuple["PlanState", "PlanState"]:
        """Where the videos and the images of an ``InterleavedPlan`` begin; without ``parts``, with ``epoch``."""
        images = self.number // every
        return self.parts or (PlanState(self.number - images, self.epoch), PlanState(images, self.epoch))


@dataclass(frozen=True)
class BucketStats:
    """Statistics of one bucket over an epoch: clips, steps, padding.

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

    @property
    def batches(self) -> dict[int, int]:
        """Batches of one rank in an epoch, by how many clips they have."""
        shorter = self.steps > 0 and 0 < self.tail_size < self.batch_size
        found = {self.batch_size: self.steps - shorter, **({self.tail_size: 1} if shorter else {})}
        return {size: count for size, count in found.items() if count}


@runtime_checkable
class Plan(Protocol):
    """Which clips are in which batch, and of which shape they are.

    Batches are counted over all epochs and are the same number on every rank. Any batch is found without visiting
    those before it, so resuming is exact for any number of workers.
    """

    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which an epoch is visited."""
        ...

    @property
    def stats(self) -> tuple[BucketStats, ...]:
        """The buckets of an epoch."""
        ...

    @property
    def step_fractions(self) -> tuple[float, ...]:
        """The share of all steps that each bucket of ``stats`` has; their sum is 1."""
        steps = [one.steps for one in self.stats]
        return tuple(own / sum(steps) for own in steps)

    @property
    def note(self) -> str:
        """What to know about ``steps_per_epoch``; empty for nothing."""
        return ""

    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        """The clips of global batch ``number`` on ``rank``.

        Raises:
            ValueError: the plan has no such batch, or no such rank.
        """
        ...

    def bucket(self, number: int) -> Bucket:
        """The shape of global batch ``number`` on every rank."""
        ...

    def clips_at(self, number: int) -> int:
        """How many clips global batch ``number`` has on every rank."""
        ...

    def same_bucket(self, number: int) -> np.ndarray:
        """Positions of all clips of that bucket: what may stand in for a clip that cannot be read."""
        ...

    def epoch_at(self, number: int) -> int:
        """The epoch in which batch ``number`` begins."""
        ...

    def remaining_after(self, number: int) -> PlanState:
        """What is not visited before batch ``number``: where a plan of other settings goes on."""
        ...
