"""Scores of motion on measured tracks. They fall steadily as a motion departs from the named one.

The limits are those by which the data set names what it draws (``vidlab.data.moving_shapes.factors``).
"""

import math

import numpy as np

from vidlab.data.moving_shapes.factors import (
    GROWTH_LIMIT,
    IN_PLACE_LIMIT,
    MOVING_LIMIT,
    SPEED_LIMIT,
    TURN_LIMIT,
    path_length,
)
from vidlab.data.moving_shapes.scene import (
    BOUNCE,
    CROSSING,
    DIRECTIONS,
    FAST,
    PAN,
    SLOW,
    Canvas,
    Track,
    extent_of,
)
from vidlab.metrics.shapes.outlines import SYMMETRY
from vidlab.metrics.shapes.parsed_scene import SeenObject, ramp

STEADY, UNSTEADY = math.log(1.12), math.log(GROWTH_LIMIT)
RESTS_AT = 1.5 * IN_PLACE_LIMIT  # how far a measured center at rest may stray
ONE_WAY, TO_AND_FRO = 0.85, 0.35  # distance over path length of a straight motion, and of none
RIGHT_WAY, WRONG_WAY = math.cos(math.radians(15)), math.cos(math.radians(45))
EDGE_MET, EDGE_MISSED = 0.06, 0.2  # gaps between an object and the edge it bounces off
# Every length of path that the data set draws lies outside these two.
_PATHS = (*SLOW, *FAST, *BOUNCE, CROSSING, PAN)
FASTEST_SLOW = max(path for path in _PATHS if path < SPEED_LIMIT)
SLOWEST_FAST = min(path for path in _PATHS if path >= SPEED_LIMIT)


def motion_score(seen: SeenObject, shape: str, motion: str, canvas: Canvas) -> float:
    """How much an object does what is named, in [0, 1].

    Args:
        seen: the object's tracks.
        shape: the named shape, whose symmetry tells how turns show.
        motion: the named motion.
        canvas: size of the clip.
    """
    if motion in DIRECTIONS:
        return _direction(seen, DIRECTIONS[motion])
    if motion == "bouncing":
        return _bounce(seen, shape, canvas)
    rest, size = _rest(seen), growth(seen)
    if motion in ("growing", "shrinking"):
        return rest * _steadily(size if motion == "growing" else -size)
    rest *= ramp(float(np.ptp(size)), UNSTEADY, STEADY)
    turned = 0.0 if shape not in SYMMETRY else _turn(seen, SYMMETRY[shape])
    if motion == "rotating":
        return rest * ramp(turned, 0.3 * TURN_LIMIT, TURN_LIMIT)
    return rest * ramp(turned, TURN_LIMIT, 0.4 * TURN_LIMIT)


def speed_score(seen: SeenObject, speed: str) -> float:
    """How much the length of an object's path is that of the named speed, in [0, 1]."""
    path = path_length(seen.x, seen.y)
    moving = ramp(path, IN_PLACE_LIMIT, MOVING_LIMIT)
    surely_slow, surely_fast = (SPEED_LIMIT + FASTEST_SLOW) / 2, (SPEED_LIMIT + SLOWEST_FAST) / 2
    if speed == "fast":
        return moving * ramp(path, surely_slow, surely_fast)
    return moving * ramp(path, surely_fast, surely_slow)


def _direction(seen: SeenObject, unit: tuple[float, float]) -> float:
    shift = np.array([seen.x[-1] - seen.x[0], seen.y[-1] - seen.y[0]])
    distance = float(np.hypot(*shift))
    if distance < IN_PLACE_LIMIT:
        return 0.0
    way = ramp(float(shift @ unit) / distance, WRONG_WAY, RIGHT_WAY)
    straight = ramp(distance / path_length(seen.x, seen.y), TO_AND_FRO, ONE_WAY)
    return way * straight * ramp(distance, IN_PLACE_LIMIT, MOVING_LIMIT)


def _bounce(seen: SeenObject, shape: str, canvas: Canvas) -> float:
    """Out and back along a line, turning once, at an edge."""
    center = np.stack([seen.x - seen.x.mean(), seen.y - seen.y.mean()], 1)
    along = center @ np.linalg.svd(center, full_matrices=False)[2][0]
    explained, turn = max((_tent(along, turn), turn) for turn in range(1, len(along) - 1))
    legs = min(float(np.ptp(along[: turn + 1])), float(np.ptp(along[turn:])))
    gap = float(_gaps(seen, shape, canvas)[max(0, turn - 1) : turn + 2].min())
    # A bounce that turns before it meets the edge is half right.
    edge = 0.5 + 0.5 * ramp(gap, EDGE_MISSED, EDGE_MET)
    return ramp(explained, 0.5, 0.95) * ramp(legs, 0.5 * MOVING_LIMIT, 0.25 * BOUNCE[0]) * edge


def _tent(along: Track, turn: int) -> float:
    """Share of a track's variance that going to a frame and back at one pace explains."""
    tent = np.abs(np.arange(len(along)) - turn)
    if np.ptp(along) < 1e-6:
        return 0.0
    return float(np.corrcoef(tent, along)[0, 1] ** 2)


def _gaps(seen: SeenObject, shape: str, canvas: Canvas) -> Track:
    """Distance from the upright shape's outline to the nearest edge, (T,)."""
    reach, size = extent_of(shape, turns=False), seen.diameter
    sides = (seen.x - reach.left * size, canvas.wide - seen.x - reach.right * size)
    ends = (seen.y - reach.up * size, canvas.high - seen.y - reach.down * size)
    return np.min([*sides, *ends], axis=0)


def _rest(seen: SeenObject) -> float:
    away = np.hypot(seen.x - np.median(seen.x), seen.y - np.median(seen.y))
    return ramp(float(away.max()), MOVING_LIMIT, RESTS_AT)


def growth(seen: SeenObject) -> Track:
    """Logarithm of the diameter relative to the first frame, (T,)."""
    return np.log(np.maximum(seen.diameter, 1e-3) / max(float(seen.diameter[0]), 1e-3))


def _steadily(size: Track) -> float:
    """A score of growth: enough of it, and most of the change in its direction."""
    change = float(np.abs(np.diff(size)).sum())
    if not change:
        return 0.0
    return ramp(size[-1], STEADY, UNSTEADY) * ramp(float(size[-1]) / change, TO_AND_FRO, ONE_WAY)


def _turn(seen: SeenObject, order: int) -> float:
    """Size of the steady part of a turn over the clip, in radians."""
    track = seen.turns[order]
    frames = np.arange(len(track))
    return abs(float(np.polyfit(frames, track, 1)[0])) * (len(track) - 1)
