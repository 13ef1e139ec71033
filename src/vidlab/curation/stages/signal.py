"""Noise and sharpness of frames, by formulas without weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile, spread
from vidlab.errors import UserError

NOISE, SHARPNESS = "noise", "sharpness"


@dataclass(frozen=True)
class NoiseAndSharpness(Measure):
    """Two numbers of a clip's frames at full size, each the median over frames.

    ``noise`` is the standard deviation of additive noise on 0 to 255 by Immerkaer's estimate (1996). ``sharpness`` is
    the steepest slope (99.9th percentile) of the luma from pixel to pixel, as a share of its range: 1 where a hard
    edge lies between two pixels, and 0.4 / s where it is blurred by a Gaussian of s pixels. Noise looks sharp: judge it
    first.

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
            lumas = [luma(frame) for frame in video.frames(clip, spread(clip.frames, self.frames))]
            noise, sharp = (float(np.median([of(one) for one in lumas])) for of in (noise_level, sharpness))
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


def sharpness(image: np.ndarray) -> float:
    """The steepest slope as a share of the range; 0 of one flat color."""
    slopes = np.concatenate([np.abs(np.diff(image, axis=axis)).ravel() for axis in (0, 1)])
    low, high = np.quantile(image, (0.001, 0.999))
    return float(np.quantile(slopes, 0.999) / (high - low)) if high > low else 0.0
