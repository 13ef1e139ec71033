"""Square waves of stripes and tiles under every camera motion, to be matched with a background.

Along one axis a camera is a ``Move``: a pan and a zoom per frame. A wave is given by its tile and by its phase at the
middle of the axis, in tiles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vidlab.data.moving_shapes.render import SUPERSAMPLING, zoom_of
from vidlab.data.moving_shapes.scene import CAMERAS, PAN, PANS, TILE, ZOOM, Canvas
from vidlab.metrics.shapes.parsed_scene import Floats

STRENGTHS = (1.0, 0.5)  # a camera is also recognized at half its pace
TILE_STEP = 1.04  # ratio of neighboring tiles of a bank
PHASES = np.arange(32) / 16


@dataclass(frozen=True)
class Move:
    """What a camera does along one axis.

    Args:
        pan: distance over the clip in short sides.
        zoom: name of a zooming camera, or "".
        strength: exponent of the zoom.
    """

    pan: float = 0.0
    zoom: str = ""
    strength: float = 1.0

    def magnification(self, canvas: Canvas) -> Floats:
        """Per frame, (T,)."""
        return zoom_of(self.zoom, canvas) ** self.strength


@dataclass(frozen=True)
class Camera:
    """A camera motion at some strength, by axis."""

    name: str
    strength: float
    across: Move
    down: Move


def _cameras() -> tuple[Camera, ...]:
    found = []
    for name in CAMERAS:
        for strength in STRENGTHS if name != "fixed" else STRENGTHS[:1]:
            dx, dy = PANS.get(name, (0.0, 0.0))
            zoom = name if name.startswith("zoom") else ""
            across, down = (Move(PAN * strength * d, zoom, strength if zoom else 1.0) for d in (dx, dy))
            found.append(Camera(name, strength, across, down))
    return tuple(found)


CAMERA_MOVES = _cameras()
"""Every camera of the data set at every strength."""


def waves(canvas: Canvas, length: int, move: Move, tiles: Floats, phases: Floats) -> Floats:
    """Waves of -1 and 1 averaged over each pixel, (tiles, phases, T, length)."""
    points = (np.arange(length * SUPERSAMPLING) + 0.5) / SUPERSAMPLING / canvas.short - length / canvas.short / 2
    world = points / move.magnification(canvas)[:, None] + (move.pan * canvas.time)[:, None]
    position = world / tiles[:, None, None, None] + phases[:, None, None]
    sign = (2 * (np.floor(position) % 2) - 1).astype(np.float32)
    return sign.reshape(*position.shape[:-1], length, SUPERSAMPLING).mean(-1)


@dataclass(frozen=True)
class Bank:
    """Waves (tiles, phases, T, length) of some tiles (tiles,), and their squares."""

    tiles: Floats
    waves: Floats
    squares: Floats


@lru_cache(maxsize=64)
def bank(canvas: Canvas, length: int, move: Move) -> Bank:
    """The waves of every tile that may be seen and of ``PHASES``."""
    # A video may hold still where a zoom begins or ends.
    most = TILE[1] * (1.0 if move.zoom else ZOOM) + 0.01
    tiles = np.exp(np.arange(np.log(TILE[0] - 0.01), np.log(most) + np.log(TILE_STEP), np.log(TILE_STEP)))
    found = waves(canvas, length, move, tiles, PHASES)
    return Bank(tiles, found, found**2)
