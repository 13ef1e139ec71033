"""What the judge saw in a video. Lengths are in short sides of the frame, colors in RGB of 0 to 255."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlab.data.moving_shapes.scene import Canvas, Track

Floats = NDArray[np.floating[Any]]
Complexes = NDArray[np.complexfloating[Any, Any]]
Whole = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SeenObject:
    """One object, tracked over the clip.

    Args:
        color: mean over its inner pixels, (3,).
        shapes: how well each shape explains the outline, in [0, 1], together at most 1.
        x, y: center per frame (T,), filled in by interpolation where it is not visible.
        diameter: of the disc of the same area, per frame (T,), filled in likewise.
        turns: accumulated clockwise turn from the first frame, in radians, by symmetry order (3 for a triangle,
            4 for a square or a cross), each (T,).
        area: visible pixels per frame (T,).
        present: frames in which some of it is visible (T,).
        hidden: frames in which another object covers a part of it (T,).
        consistency: how well one shape of one color explains it in every frame, in [0, 1].
    """

    color: Floats
    shapes: Mapping[str, float]
    x: Track
    y: Track
    diameter: Track
    turns: Mapping[int, Track]
    area: Track
    present: Mask
    hidden: Mask
    consistency: float


@dataclass(frozen=True)
class SeenBackground:
    """What is behind the objects.

    Args:
        colors: one (1, 3) or two (2, 3).
        patterns: correlation of the background with the best pattern of each kind, in [0, 1]; for "plain", whether
            one color covers most of the frame.
        cameras: correlation of the background with its pattern moved by each camera, in [0, 1].
        consistency: how much of it one moving pattern explains in every frame, in [0, 1].
    """

    colors: Floats
    patterns: Mapping[str, float]
    cameras: Mapping[str, float]
    consistency: float


@dataclass(frozen=True)
class ParsedScene:
    """Everything the judge saw.

    Args:
        canvas: size of the video.
        objects: largest first.
        background: what is behind them.
        counts: number of separate objects per frame (T,).
        flicker: mean absolute change, from frame to frame, of what the objects and the background leave
            unexplained, in gray levels of 0 to 255.
    """

    canvas: Canvas
    objects: tuple[SeenObject, ...]
    background: SeenBackground
    counts: Track
    flicker: float


def ramp(value: float, zero: float, one: float) -> float:
    """A score that rises linearly from 0 at ``zero`` to 1 at ``one``, which may be the smaller of the two."""
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))
