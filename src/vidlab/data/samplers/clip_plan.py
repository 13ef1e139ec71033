"""What a plan of clips in buckets tells, and the plans that mix none: of one bucket; of images and videos in turn."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from vidlab.data.samplers.buckets import Assignment, Bucket
from vidlab.data.samplers.plan import ClipRef, Plan, PlanState


@dataclass(frozen=True)
class BucketStats:
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
    def shares(self) -> tuple[BucketStats, ...]:
        """The buckets of an epoch."""
        ...

    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        """The clips of global batch ``number`` (from 0) on ``rank``."""
        ...

    def bucket(self, number: int) -> Bucket:
        """The shape of global batch ``number`` on every rank."""
        ...

    def peers(self, number: int) -> np.ndarray:
        """Positions of all clips of that bucket: what may stand in for a clip that cannot be read."""
        ...

    def epoch_at(self, number: int) -> int:
        """The epoch in which batch ``number`` begins."""
        ...

    def left(self, number: int) -> "PlanState | JointStart":
        """What is not visited before batch ``number``: where a plan of other settings goes on."""
        ...


@dataclass(frozen=True, eq=False)
class JointStart:
    """Where the two orders of a ``InterleavedPlan`` begin, each counting its own batches."""

    videos: PlanState
    images: PlanState

    @classmethod
    def at(cls, start: PlanState, every: int) -> "JointStart":
        """Both at the beginning of an epoch.

        Args:
            start: a batch of the whole, and the epoch of both.
            every: as in ``InterleavedPlan``.
        """
        images = start.number // every
        return cls(PlanState(start.number - images, start.epoch), PlanState(images, start.epoch))


class SingleBucketPlan:
    """One bucket: ``Plan`` over its clips, whose epochs are joined, so that nothing is left over at their end.

    Args:
        assignment: the bucket of every clip; one bucket.
        batch_size: clips per batch and rank.
        seed: not negative.
        world_size: ranks.
        start: where the order begins.
    """

    def __init__(
        self, assignment: Assignment, batch_size: int, seed: int, world_size: int = 1, start: PlanState | None = None
    ) -> None:
        (self._bucket,) = assignment.buckets
        self.clips = np.flatnonzero(assignment.codes == 0).astype(np.int32)
        self._positions = len(assignment.codes)
        if start is not None and start.remaining is not None:
            visited = None if start.visited is None else start.visited[self.clips]
            start = PlanState(start.number, start.epoch, start.remaining[self.clips], visited)
        self.plan = Plan(len(self.clips), batch_size, seed, world_size, start)
        self.world_size = world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every clip has been visited, the last of which may go on with the next epoch."""
        return -(-len(self.clips) // (self.plan.batch_size * self.world_size))

    @property
    def shares(self) -> tuple[BucketStats, ...]:
        """The one bucket."""
        clips = len(self.clips)
        return (BucketStats(self._bucket, clips, clips, self.plan.batch_size, self.steps_per_epoch),)

    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        """See ``Plan.batch``."""
        visits = self.plan.batch(number, rank)
        return tuple(ClipRef(int(self.clips[place]), epoch, earlier) for place, epoch, earlier in visits)

    def bucket(self, number: int) -> Bucket:
        """The one bucket."""
        return self._bucket

    def peers(self, number: int) -> np.ndarray:
        """All its clips."""
        return self.clips

    def epoch_at(self, number: int) -> int:
        """See ``Plan.epoch_at``."""
        return self.plan.epoch_at(number)

    def left(self, number: int) -> PlanState:
        """See ``Plan.left``."""
        start = self.plan.left(number)
        if start.remaining is None:
            return start
        remaining, visited = np.zeros((2, self._positions), np.uint16)
        remaining[self.clips] = start.remaining
        visited[self.clips] = 0 if start.visited is None else start.visited
        return PlanState(start.number, start.epoch, remaining, visited)


class InterleavedPlan:
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
    def shares(self) -> tuple[BucketStats, ...]:
        """The buckets of an epoch of images and of an epoch of videos."""
        return (*self.images.shares, *self.videos.shares)

    def _find(self, number: int) -> tuple[ClipPlan, int]:
        earlier_images = number // self.every
        if number % self.every == self.every - 1:
            return self.images, earlier_images
        return self.videos, number - earlier_images

    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
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

    def epoch_at(self, number: int) -> int:
        """The later of the epochs that images and videos are in."""
        images = number // self.every
        return max(self.videos.epoch_at(number - images), self.images.epoch_at(images))

    def left(self, number: int) -> JointStart:
        """What each has left before batch ``number``."""
        images = number // self.every
        videos, own = self.videos.left(number - images), self.images.left(images)
        assert isinstance(videos, PlanState) and isinstance(own, PlanState)
        return JointStart(videos, own)
