"""Noise and sharpness of frames, by formulas without weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.curation.stages.aesthetic import spread
from vidlab.errors import UserError

NOISE, SHARPNESS = "noise", "sharpness"


@dataclass(frozen=True)
class NoiseAndSharpness(Measure):
    """Two numbers of a clip's frames at full size, each the median over frames.

    ``noise`` is the standard deviation of additive noise of the luma on 0 to 255 by Immerkaer's estimate (1996).
    ``sharpness`` is the steepest slope (99.9th percentile) from pixel to pixel of any color channel, as a share of the
    widest range of one: 1 where a hard edge lies between two pixels, and 0.4 / s where it is blurred by a Gaussian of s
    pixels. A blue thing before a grey one has an edge that the luma hardly shows. Noise looks sharp: judge it first.

    Args:
        frames: number of frames, evenly over the clip.

    Raises:
        UserError: a setting is out of range.
    """

    frames: int = 3

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"frames={self.frames}: it must be 1 or more.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return NOISE, SHARPNESS

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        found = []
        for clip in clips:
            frames = video.frames(clip, spread(clip.frames, self.frames))
            noise = float(np.median([noise_level(luma(frame)) for frame in frames]))
            sharp = float(np.median([sharpness(frame) for frame in frames]))
            found.append(Measurement({NOISE: noise, SHARPNESS: sharp}))
        return found


def luma(frame: np.ndarray) -> np.ndarray:
    """The luma of a uint8 (H, W, 3) RGB frame as float (H, W), 0 to 255 (BT.601)."""
    return frame.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def noise_level(image: np.ndarray) -> float:
    """Immerkaer's estimate: sqrt(pi / 2) / 6 times the mean absolute response of a mask that is blind to slopes.

    The mask is the difference of two Laplacians, [[1, -2, 1], [-2, 4, -2], [1, -2, 1]].
    """
    second = image[:, 2:] - 2 * image[:, 1:-1] + image[:, :-2]
    response = second[2:] - 2 * second[1:-1] + second[:-2]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(response).mean())


def sharpness(frame: np.ndarray) -> float:
    """The steepest slope of a channel of a (H, W, C) frame as a share of the widest range; 0 of one flat color."""
    values = frame.astype(np.float64)
    low, high = np.quantile(values, (0.001, 0.999), axis=(0, 1))  # (C,) each
    slopes = [np.abs(np.diff(values, axis=axis)).reshape(-1, values.shape[2]) for axis in (0, 1)]
    steepest = np.quantile(np.concatenate(slopes), 0.999, axis=0)  # (C,)
    widest = float((high - low).max())
    return float(steepest.max()) / widest if widest > 0 else 0.0
