"""Convex solids as planes, and what rays see of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlab.data.multiview.cameras import Vectors

Color = tuple[int, int, int]
ROUND = 24  # sides of what stands for a round solid
AMBIENT = 0.45
WHITE = 255.0


@dataclass(frozen=True)
class Solid:
    """What lies inside all of its planes: n . x <= d.

    Args:
        normals: outward, of length 1, (F, 3).
        offsets: d, (F,).
        colors: of the faces, RGB from 0 to 255, (F, 3).
    """

    normals: Vectors
    offsets: NDArray[np.float64]
    colors: NDArray[np.float64]

    def turned(self, angle: float) -> "Solid":
        """Around the vertical axis through the origin, in radians."""
        cos, sin = math.cos(angle), math.sin(angle)
        x, y, z = self.normals.T
        return Solid(np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1), self.offsets, self.colors)

    def moved(self, by: Sequence[float]) -> "Solid":
        """Moved along (x, y, z)."""
        x, y, z = self.normals.T
        return Solid(self.normals, self.offsets + x * by[0] + y * by[1] + z * by[2], self.colors)


def prism(sides: int, radius: float, height: float, around: Sequence[Color], caps: Color) -> Solid:
    """A regular prism that stands on the plane z = 0; ``around`` are its sides' colors, in turn in equal shares.

    Args:
        sides: at least 3.
        radius: of the circle around its base.
        height: along z.
        around: colors of sides, from the one at angle 0 on; as many as divide ``sides``, repeated.
        caps: color of top and bottom.
    """
    angles = 2 * math.pi * (np.arange(sides) + 0.5) / sides
    normals = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1)
    offsets = np.full(sides, radius * math.cos(math.pi / sides))
    normals = np.concatenate([normals, [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    return Solid(normals, np.concatenate([offsets, [height, 0.0]]), _colored(sides, around, [caps, caps]))


def pyramid(sides: int, radius: float, height: float, around: Sequence[Color], base: Color) -> Solid:
    """A regular pyramid on the plane z = 0, its tip at (0, 0, ``height``); arguments as of ``prism``."""
    angles = 2 * math.pi * (np.arange(sides) + 0.5) / sides
    inner = radius * math.cos(math.pi / sides)  # from the axis to the middle of a side of the base
    length = math.hypot(height, inner)
    normals = np.stack([np.cos(angles) * height, np.sin(angles) * height, np.full(sides, inner)], axis=1) / length
    offsets = np.full(sides, height * inner / length)
    normals = np.concatenate([normals, [[0.0, 0.0, -1.0]]])
    return Solid(normals, np.concatenate([offsets, [0.0]]), _colored(sides, around, [base]))


def bipyramid(sides: int, radius: float, height: float, around: Sequence[Color]) -> Solid:
    """Two pyramids base to base between z = 0 and ``height``, one color to a side above and the next one below."""
    upper = pyramid(sides, radius, height / 2, around, around[0])
    turned = [*around[1:], around[0]]
    lower = pyramid(sides, radius, height / 2, turned, around[0])
    normals = np.concatenate([upper.normals[:-1], lower.normals[:-1] * [1, 1, -1]])
    offsets = np.concatenate([upper.offsets[:-1], lower.offsets[:-1]])
    colors = np.concatenate([upper.colors[:-1], lower.colors[:-1]])
    return Solid(normals, offsets, colors).moved((0.0, 0.0, height / 2))


def _colored(sides: int, around: Sequence[Color], others: Sequence[Color]) -> NDArray[np.float64]:
    """``around`` in turn: each face one of them, or, of a round solid, each quarter."""
    run = max(sides // 4, 1) if sides >= ROUND else 1
    return np.array([*(around[k // run % len(around)] for k in range(sides)), *others], dtype=np.float64)


def seen(solids: Sequence[Solid], start: Vectors, directions: Vectors, light: Vectors) -> NDArray[np.float64]:
    """The colors that rays see, (..., 3) from 0 to 255, white where they see no solid.

    A ray enters a convex solid where it passes the last of the planes that it enters, if it has left through none
    before (Kay and Kajiya 1986). Faces shine as Lambert's law says, c (a + (1 - a) max(n . l, 0)), a being ``AMBIENT``.

    Args:
        solids: at least one.
        start: of all rays, (3,).
        directions: of the rays, (..., 3).
        light: towards the light, of length 1.
    """
    nearest = np.full(directions.shape[:-1], np.inf)
    colors = np.full(directions.shape, WHITE)
    for solid in solids:
        entry, face = _entries(solid, start, directions)
        shade = AMBIENT + (1 - AMBIENT) * np.maximum((solid.normals * light).sum(1), 0.0)  # (F,)
        hit = entry < nearest
        nearest = np.where(hit, entry, nearest)
        colors = np.where(hit[..., None], (solid.colors * shade[:, None])[face], colors)
    return colors


def _entries(solid: Solid, start: Vectors, directions: Vectors) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Where each ray enters, in units of its direction, infinite where it does not, and through which face."""
    last_in = np.full(directions.shape[:-1], -np.inf)
    first_out = np.full(directions.shape[:-1], np.inf)
    face = np.zeros(directions.shape[:-1], dtype=np.intp)
    x, y, z = np.moveaxis(directions, -1, 0)
    for number, (normal, offset) in enumerate(zip(solid.normals, solid.offsets, strict=True)):
        along = normal[0] * x + normal[1] * y + normal[2] * z
        left = float(offset - (normal * start).sum())  # along the normal, to the plane
        with np.errstate(divide="ignore", invalid="ignore"):
            at = left / along
        later = (along < 0) & (at > last_in)
        last_in, face = np.where(later, at, last_in), np.where(later, number, face)
        first_out = np.where((along > 0) & (at < first_out), at, first_out)
        first_out = np.where((along == 0) & (left < 0), -np.inf, first_out)  # beside the plane, outside
    return np.where((last_in < first_out) & (last_in > 0), last_in, np.inf), face
