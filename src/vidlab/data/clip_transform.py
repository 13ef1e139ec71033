"""How a clip becomes pixels: its frames, its size, and which of its stretches and crops a visit shows."""

from dataclasses import dataclass, field, replace

from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.plan import ClipRef
from vidlab.randomness import KeyPart, moment


@dataclass(frozen=True)
class ClipTransform:
    """How a clip becomes pixels.

    A stretch of ``(frames - 1) * frame_stride + 1`` source frames is chosen, every ``frame_stride``-th frame
    of it is kept, the frames are scaled so that they just cover ``height`` x ``width``, and the rest is
    cropped away.

    Args:
        frames: frames of a clip.
        height: pixels.
        width: pixels.
        frame_stride: distance of kept frames in source frames; a clip's rate becomes fps / frame_stride.
        random: True draws the stretch, the crop and the caption by key and visit (training); False takes the
            middle stretch, the middle crop and the first caption (validation).
        views: how many of them are drawn per clip: visit ``v`` of epoch ``e``, both from 0, shows number
            ``(e + v) % views``. None draws a new one each visit.
    """

    frames: int
    height: int
    width: int
    frame_stride: int = 1
    random: bool = True
    views: int | None = None

    @property
    def span(self) -> int:
        """Source frames a clip must have."""
        return (self.frames - 1) * self.frame_stride + 1

    def number(self, visit: ClipRef) -> int:
        """Which view of a clip a visit shows, where there are ``views`` of them: each equally often in so many epochs,
        and another one at the next visit, in this epoch as in the next."""
        if not self.random:
            return 0
        number = visit.epoch + visit.number
        return number if self.views is None else number % self.views

    def key(self, visit: ClipRef) -> KeyPart:
        """The part of a random choice's key that tells one view of a clip from another."""
        return moment(visit.epoch, visit.number) if self.random and self.views is None else self.number(visit)

    def at(self, fps: float) -> "ClipTransform":
        """The view of a clip of ``fps`` frames per second; here the same for all."""
        return self


@dataclass(frozen=True)
class BucketView(ClipTransform):
    """A view of a bucket's shape, whose distance of frames is the one the bucketing rule counted with.

    Args:
        rule: gives the distance of kept frames for a clip's rate.
    """

    rule: Bucketing = field(kw_only=True)

    def at(self, fps: float) -> "BucketView":
        """The view of a clip of ``fps`` frames per second."""
        return replace(self, frame_stride=int(self.rule.step_at(fps)))
