"""How a clip is cut: its frames, its size, and which of its temporal segments and crops a visit shows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from vidlab.data.samplers.plan import ClipRef
from vidlab.randomness import KeyPart, moment

# The filter of ``scale_to_cover``.
FILTER = "torch bicubic, antialiased, uint8"


@dataclass(frozen=True)
class ClipTransform:
    """How a clip is cut, in time and space.

    A temporal segment of ``(frames - 1) * frame_stride + 1`` source frames is chosen, every ``frame_stride``-th frame
    of it is kept, the frames are scaled so that they just cover ``height`` x ``width``, and the rest is
    cropped away.

    Args:
        frames: frames of a clip.
        height: pixels.
        width: pixels.
        frame_stride: distance of kept frames in source frames; a clip's rate becomes fps / frame_stride.
        random: True draws the segment, the crop and the caption by key and visit (training); False takes the
            middle segment, the middle crop and the first caption (validation).
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


def scale_to_cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale frames so that they just cover ``height`` x ``width``, keeping proportions; one side fits.

    The filter is torch's antialiased bicubic on uint8 (Keys a = -0.5 widened by the scale, as Pillow's),
    everywhere in vidlab, because metrics move with it. Frames already of the right size are returned as they
    are.

    Args:
        frames: uint8 (T, H, W, 3).
        height: smallest height to cover.
        width: smallest width to cover.
    """
    rows, columns = frames.shape[1:3]
    scale = max(height / rows, width / columns)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    if size == (rows, columns):
        return frames
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    scaled = interpolate(planes, size=size, mode="bicubic", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
