"""What stands before the cameras: one solid, or one on top of another, drawn from a generator."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from vidlab.data.moving_shapes.scene import COLORS
from vidlab.data.multiview.cameras import SIX_VIEWS, Camera, rays
from vidlab.data.multiview.solids import ROUND, Color, Solid, bipyramid, prism, pyramid, seen

# By name: how many sides, and what stands on them.
PRISMS = {"cube": 4, "triangular prism": 3, "hexagonal prism": 6, "cylinder": ROUND}
PYRAMIDS = {"pyramid": 4, "hexagonal pyramid": 6, "cone": ROUND}
BIPYRAMIDS = {"octahedron": 4}
KINDS = (*PRISMS, *PYRAMIDS, *BIPYRAMIDS)
STANDS = tuple(PRISMS)  # what another solid can stand on
SHOWN = {name: rgb for name, rgb in COLORS.items() if name != "white"}  # the background is white
ELEVATIONS = (0.0, 30.0)  # of the given view
SAMPLES = 2  # rays along each side of a pixel
STACKED = 0.5  # share of objects of two solids
LIGHT = np.array([1.0, -0.6, 1.2]) / math.sqrt(1.0 + 0.36 + 1.44)  # from before, left and above the given view


@dataclass(frozen=True)
class Part:
    """A solid by name, with the names of its colors: two around, and one of its caps or base."""

    kind: str
    colors: tuple[str, str, str]
    radius: float
    height: float

    @property
    def words(self) -> str:
        """Its share of the caption."""
        article = "an" if self.colors[0][0] in "aeiou" else "a"
        return f"{article} {self.colors[0]} and {self.colors[1]} {self.kind}"

    @property
    def solid(self) -> Solid:
        """It, standing on the plane z = 0."""
        first, second, third = (SHOWN[name] for name in self.colors)
        around: list[Color] = [first, second]
        if self.kind in PRISMS:
            sides = PRISMS[self.kind]
            return prism(sides, self.radius, self.height, [first, second, third] if sides == 3 else around, third)
        if self.kind in PYRAMIDS:
            return pyramid(PYRAMIDS[self.kind], self.radius, self.height, around, third)
        return bipyramid(BIPYRAMIDS[self.kind], self.radius, self.height, around)


@dataclass(frozen=True)
class SolidObject:
    """Solids on top of each other, the lowest first, turned by an angle in radians; the middle is at the origin."""

    parts: tuple[Part, ...]
    turn: float

    @property
    def caption(self) -> str:
        """What it shows, from top to bottom."""
        return " on ".join(part.words for part in reversed(self.parts))

    def solids(self) -> list[Solid]:
        """Its solids where they stand."""
        base = -sum(part.height for part in self.parts) / 2
        placed = []
        for part in self.parts:
            placed.append(part.solid.turned(self.turn).moved((0.0, 0.0, base)))
            base += part.height
        return placed

    def views(self, elevation: float, height: int, width: int) -> NDArray[np.uint8]:
        """The view from azimuth 0 and ``elevation``, then the six views of Zero123++; uint8 (7, H, W, 3)."""
        solids = self.solids()
        pictures = []
        for camera in (Camera(0.0, elevation), *SIX_VIEWS):
            start, directions = rays(camera, height, width, SAMPLES)
            pictures.append(seen(solids, start, directions, LIGHT).mean(axis=2))  # the rays of a pixel
        return np.round(np.stack(pictures)).astype(np.uint8)


def draw_object(rng: Random) -> SolidObject:
    """An object that stays within a sphere of radius 1 around its middle.

    Opposite sides have the same colors, so that what the given view hides can be told from what it shows.
    """
    kinds = [rng.choice(KINDS)]
    if rng.random() < STACKED:
        kinds = [rng.choice(STANDS), kinds[0]]
    sizes = [(rng.uniform(0.6, 0.8), rng.uniform(0.7, 1.1)) for _ in kinds]
    if len(kinds) == 2:  # the upper one stands inside the lower one's top
        (low_radius, low_height), (_, high_height) = sizes
        low_radius, low_height, high_height = 0.8 * low_radius, 0.65 * low_height, 0.65 * high_height
        sizes = [(low_radius, low_height), (low_radius * rng.uniform(0.55, 0.8), high_height)]
    parts = []
    for kind, (radius, height) in zip(kinds, sizes, strict=True):
        colors = rng.sample(tuple(SHOWN), 3)
        parts.append(Part(kind, (colors[0], colors[1], colors[2]), radius, height))
    return SolidObject(tuple(parts), rng.uniform(0, 2 * math.pi))
