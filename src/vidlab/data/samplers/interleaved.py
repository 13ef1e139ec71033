"""The plan of joint training on images and videos: one step of images to so many of videos."""

import numpy as np
from typing_extensions import override

from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.plan import BucketStats, ClipRef, Plan, PlanState


class InterleavedPlan(Plan):
    """Images and videos in turn: step ``every - 1`` of every ``every`` steps is one of images.

    Each has its own epochs, and an epoch of the whole is one of the videos.

    Args:
        videos: the steps of videos.
        images: the steps of images.
        every: at least 2; 9 is M4V's ratio of 1 to 8.

    Raises:
        ValueError: ``every`` below 2, or plans of different world sizes.
    """

    def __init__(self, videos: Plan, images: Plan, every: int) -> None:
        if every < 2 or videos.world_size != images.world_size:
            raise ValueError(f"every={every} must be at least 2, and both plans must have one world size")
        self.videos = videos
        self.images = images
        self.every = every
        self.world_size = videos.world_size

    @property
    @override
    def steps_per_epoch(self) -> int:
        # those of videos, and of the images among them
        return self.videos.steps_per_epoch + (self.videos.steps_per_epoch - 1) // (self.every - 1)

    @property
    @override
    def stats(self) -> tuple[BucketStats, ...]:
        # of an epoch of images and of an epoch of videos
        return (*self.images.stats, *self.videos.stats)

    @property
    @override
    def step_fractions(self) -> tuple[float, ...]:
        images, videos = 1 / self.every, (self.every - 1) / self.every
        own = [images * fraction for fraction in self.images.step_fractions]
        return (*own, *(videos * fraction for fraction in self.videos.step_fractions))

    @property
    @override
    def note(self) -> str:
        return f"one in {self.every} of images; an epoch of images is {self.images.steps_per_epoch} steps of them"

    def _find(self, number: int) -> tuple[Plan, int]:
        earlier_images = number // self.every
        if number % self.every == self.every - 1:
            return self.images, earlier_images
        return self.videos, number - earlier_images

    @override
    def batch(self, number: int, rank: int = 0) -> tuple[ClipRef, ...]:
        plan, own = self._find(number)
        return plan.batch(own, rank)

    @override
    def bucket(self, number: int) -> Bucket:
        plan, own = self._find(number)
        return plan.bucket(own)

    @override
    def clips_at(self, number: int) -> int:
        plan, own = self._find(number)
        return plan.clips_at(own)

    @override
    def same_bucket(self, number: int) -> np.ndarray:
        plan, own = self._find(number)
        return plan.same_bucket(own)

    @override
    def epoch_at(self, number: int) -> int:
        # the later of the epochs that images and videos are in
        images = number // self.every
        return max(self.videos.epoch_at(number - images), self.images.epoch_at(images))

    @override
    def remaining_after(self, number: int) -> PlanState:
        images = number // self.every
        parts = (self.videos.remaining_after(number - images), self.images.remaining_after(images))
        return PlanState(number, self.epoch_at(number), parts=parts)
