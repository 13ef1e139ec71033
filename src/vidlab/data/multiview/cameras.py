"""Cameras around an object: the six fixed views of Zero123++ and the rays of their pixels.

The object stands at the origin, z points up. A camera looks at the origin from an azimuth, counted from that of the
given view, and from an elevation above the horizon.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

FIELD_OF_VIEW = 30.0  # degrees, of the short side
DISTANCE = 1 / math.sin(math.radians(FIELD_OF_VIEW / 2))  # a sphere of radius 1 touches the picture's edge


@dataclass(frozen=True)
class Camera:
    """Where a camera stands, in degrees; azimuth 0 is that of the given view, and grows counterclockwise from above."""

    azimuth: float
    elevation: float


# Zero123++ v1.2 (arXiv:2310.15110; earlier versions had 30 and -20 degrees): azimuths relative to the given view,
# elevations absolute.
SIX_VIEWS = tuple(Camera(azimuth, 20.0 if k % 2 == 0 else -10.0) for k, azimuth in enumerate(range(30, 360, 60)))
VIEWS = 1 + len(SIX_VIEWS)


def rays(camera: Camera, height: int, width: int, samples: int) -> tuple[Vectors, Vectors]:
    """Where the rays of a picture begin, (3,), and their directions, (height, width, samples^2, 3), not normalized.

    Args:
        camera: where they begin.
        height, width: pixels.
        samples: rays along each side of a pixel, evenly spaced.
    """
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    out = np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth),
                    math.sin(elevation)])  # fmt: skip
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    up = np.cross(out, right)
    half = math.tan(math.radians(FIELD_OF_VIEW / 2)) / min(height, width)
    x, y = (half * (2 * (np.arange(n * samples) + 0.5) / samples - n) for n in (width, height))
    grid = -out + x[None, :, None] * right - y[:, None, None] * up  # (height samples, width samples, 3)
    grid = grid.reshape(height, samples, width, samples, 3).transpose(0, 2, 1, 3, 4)
    return DISTANCE * out, grid.reshape(height, width, samples * samples, 3)
