"""Masks (T, H, W): neighborhoods and connected parts within each frame."""

import numpy as np

from vidlab.data.moving_shapes.scene import Track
from vidlab.metrics.shapes.parsed_scene import Floats, Mask, Whole


def widened(mask: Mask) -> Mask:
    """The mask and its eight neighbors."""
    rows = mask.copy()
    rows[:, 1:] |= mask[:, :-1]
    rows[:, :-1] |= mask[:, 1:]
    out = rows.copy()
    out[:, :, 1:] |= rows[:, :, :-1]
    out[:, :, :-1] |= rows[:, :, 1:]
    return out


def eroded(mask: Mask) -> Mask:
    """The pixels whose four neighbors, where the frame has them, are in the mask too."""
    out = mask.copy()
    out[:, 1:] &= mask[:, :-1]
    out[:, :-1] &= mask[:, 1:]
    out[:, :, 1:] &= mask[:, :, :-1]
    out[:, :, :-1] &= mask[:, :, 1:]
    return out


def parts(mask: Mask) -> Whole:
    """A number for each connected part (eight neighbors) of each frame, unique in the clip; 0 outside."""
    numbers = np.arange(1, mask.size + 1).reshape(mask.shape) * mask
    while True:
        spread = numbers.copy()
        np.maximum(spread[:, 1:], numbers[:, :-1], out=spread[:, 1:])
        np.maximum(spread[:, :-1], numbers[:, 1:], out=spread[:, :-1])
        wide = spread.copy()
        np.maximum(wide[:, :, 1:], spread[:, :, :-1], out=wide[:, :, 1:])
        np.maximum(wide[:, :, :-1], spread[:, :, 1:], out=wide[:, :, :-1])
        wide *= mask
        if np.array_equal(wide, numbers):
            return numbers
        numbers = wide


def moments(share: Floats) -> tuple[Track, Track, Track]:
    """Area in pixels and center (x, y) in pixels of a coverage (T, H, W), each (T,); NaN centers where it is empty."""
    height, width = share.shape[1:]
    area = share.sum((1, 2), dtype=np.float64)
    across, down = share.sum(1, dtype=np.float64), share.sum(2, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = across @ (np.arange(width) + 0.5) / area
        y = down @ (np.arange(height) + 0.5) / area
    return area, x, y
