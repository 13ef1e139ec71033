"""What a moving-shapes clip is made of: the vocabulary, its numbers, and the records a clip is rendered from.

Lengths are fractions of the frame's short side, speeds are lengths per clip, so every frame count and frame
size shows the same scene. ``x`` grows to the right, ``y`` downwards, angles clockwise; all tracks are as seen
on screen, after the camera, with one entry per frame.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Track = NDArray[np.float64]
Color = tuple[int, int, int]

# Every pair below differs by at least 80 in RGB, an object and a background by at least 90 (tests hold this),
# also anywhere along a gradient.
COLORS: dict[str, Color] = {
    "red": (225, 25, 35),
    "green": (40, 200, 60),
    "blue": (45, 85, 240),
    "yellow": (250, 230, 30),
    "orange": (250, 120, 20),
    "magenta": (225, 40, 200),
    "cyan": (50, 210, 230),
    "white": (250, 250, 250),
}
BACKGROUND_COLORS: dict[str, Color] = {
    "black": (10, 10, 12),
    "grey": (125, 125, 125),
    "navy": (20, 25, 100),
    "brown": (95, 55, 30),
    "dark green": (15, 85, 45),
}
PATTERNS = ("plain", "striped", "checkered", "gradient")
SHAPES = ("circle", "square", "triangle", "cross")

# Neighboring sizes differ by a factor of about 1.9 in area: 44, 85 and 156 pixels at 32 x 32.
SIZES: dict[str, float] = {"small": 0.235, "medium": 0.325, "large": 0.44}
SIZE_JITTER = 0.02
SLOW = (0.22, 0.25)
FAST = (0.36, 0.39)  # the widest object, a large triangle, has room for 0.394
BOUNCE = (0.52, 0.56)  # there and back again
CROSSING = 0.6  # path of an object that passes before another
PAN = 0.36
ZOOM = 1.6
GROWTH = (1.8, 2.1)
TURN = (1.6, 2.3)  # radians per clip: more than a square's symmetry of 90 degrees, under 45 degrees per frame
TILE = (0.17, 0.21)  # a stripe or tile; a pan moves it by less than its width per frame, even with 4 frames

_HALF = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "lower right": (_HALF, _HALF),
    "down": (0.0, 1.0),
    "lower left": (-_HALF, _HALF),
    "left": (-1.0, 0.0),
    "upper left": (-_HALF, -_HALF),
    "up": (0.0, -1.0),
    "upper right": (_HALF, -_HALF),
}
IN_PLACE = ("still", "rotating", "growing", "shrinking")
MOTIONS = (*DIRECTIONS, "bouncing", *IN_PLACE)
PANS: dict[str, tuple[float, float]] = {f"pan {name}": DIRECTIONS[name] for name in ("left", "right", "up", "down")}
CAMERAS = ("fixed", *PANS, "zoom in", "zoom out")

# Outlines in units of the diameter of the disc of the same area, so that a size is an area whatever the
# shape.
SQUARE_HALF = math.sqrt(math.pi) / 4
TRIANGLE_INRADIUS = math.sqrt(math.pi / math.sqrt(3)) / (2 * math.sqrt(3))
CROSS_HALF = math.sqrt(math.pi / 4 * 9 / 5) / 2
CROSS_ARM = CROSS_HALF / 3
CIRCUMRADIUS = {
    "circle": 0.5,
    "square": SQUARE_HALF * math.sqrt(2),
    "triangle": 2 * TRIANGLE_INRADIUS,
    "cross": math.hypot(CROSS_HALF, CROSS_ARM),
}


@dataclass(frozen=True)
class Extent:
    """How far a shape reaches from its center of mass, in units of its diameter."""

    left: float
    right: float
    up: float
    down: float


def extent_of(shape: str, turns: bool) -> Extent:
    """The reach of an upright shape, or of one that turns through every angle."""
    if turns or shape == "circle":
        radius = CIRCUMRADIUS[shape]
        return Extent(radius, radius, radius, radius)
    if shape == "triangle":
        side = math.sqrt(3) * TRIANGLE_INRADIUS
        return Extent(side, side, 2 * TRIANGLE_INRADIUS, TRIANGLE_INRADIUS)
    half = SQUARE_HALF if shape == "square" else CROSS_HALF
    return Extent(half, half, half, half)


@dataclass(frozen=True)
class Canvas:
    """The size of a clip in frames and pixels."""

    frames: int
    height: int
    width: int

    @property
    def short(self) -> int:
        """Short side in pixels: the unit of length."""
        return min(self.height, self.width)

    @property
    def wide(self) -> float:
        """Width in short sides."""
        return self.width / self.short

    @property
    def high(self) -> float:
        """Height in short sides."""
        return self.height / self.short

    @property
    def time(self) -> Track:
        """0 at the first frame, 1 at the last."""
        return np.linspace(0.0, 1.0, self.frames)


@dataclass(frozen=True)
class Body:
    """One object: a shape, a color, and four tracks of one number per frame."""

    shape: str
    color: str
    x: Track
    y: Track
    diameter: Track
    angle: Track

    @property
    def reach(self) -> float:
        """The largest distance of a point of the outline from the center over the clip."""
        return CIRCUMRADIUS[self.shape] * float(self.diameter.max())


@dataclass(frozen=True)
class Background:
    """What is behind the objects.

    Args:
        pattern: one of ``PATTERNS``.
        colors: one for a plain background, otherwise two.
        vertical: stripes or gradient vary down the frame instead of across it.
        tile: width of a stripe or tile.
        phase: offsets of the pattern across and down, in tiles.
    """

    pattern: str
    colors: tuple[str, ...]
    vertical: bool = False
    tile: float = 0.2
    phase: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """Everything a clip is rendered from; bodies are ordered back to front."""

    canvas: Canvas
    bodies: tuple[Body, ...]
    background: Background
    camera: str = "fixed"
