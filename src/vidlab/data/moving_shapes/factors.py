"""Names the factors of a rendered clip from the tracks of its objects on screen.

The names depend on the tracks alone, never on how a clip was made, so the same functions name tracks measured
in a generated video. What falls between two names is "" and is never sampled.
"""

from dataclasses import dataclass

import numpy as np

from vidlab.data.moving_shapes.scene import (
    DIRECTIONS,
    FAST,
    PANS,
    SIZES,
    SLOW,
    Body,
    Canvas,
    Scene,
    Track,
)
from vidlab.factors import Factors, ObjectFactors

IN_PLACE_LIMIT = 0.03  # displacement of an object that keeps its place: less than a pixel at 32
MOVING_LIMIT = 0.12  # displacement of an object that moves
SPEED_LIMIT = (SLOW[1] + FAST[0]) / 2
DIRECTION_LIMIT = np.cos(np.deg2rad(12))
STEADY_LIMIT = 1.06  # ratio of diameters of an object that keeps its size
GROWTH_LIMIT = 1.4
TURN_LIMIT = 1.0  # radians
# Up to the first is left or upper, between the inner two the middle, from the last on right or lower.
PLACE_LIMITS = (0.36, 0.45, 0.55, 0.64)
RELATION_DISTANCE = 0.28
CENTRE = "centre"


def motion_seen(x: Track, y: Track, diameter: Track, angle: Track, shape: str) -> str:
    """The name of a motion on screen, or "" where none is clear.

    The first rule that holds decides: the center goes out and comes back (bouncing), it is displaced (a
    direction), the diameter changes (growing, shrinking), an object that is not round turns (rotating),
    nothing happens (still). A motion that the camera cancels is therefore "still", and an object at rest
    under a pan moves against the pan.

    Args:
        x, y, diameter: in short sides, one number per frame.
        angle: in radians, one number per frame.
        shape: a circle's turning cannot be seen.
    """
    shift = np.array([x[-1] - x[0], y[-1] - y[0]])
    distance = float(np.hypot(*shift))
    path = path_length(x, y)
    if path >= 2 * MOVING_LIMIT and path > 1.5 * distance:
        return "bouncing"
    if distance >= MOVING_LIMIT:
        name, cosine = max(
            ((name, float(shift @ unit) / distance) for name, unit in DIRECTIONS.items()),
            key=lambda pair: pair[1],
        )
        return name if cosine >= DIRECTION_LIMIT else ""
    if path > IN_PLACE_LIMIT:
        return ""
    growth = float(diameter[-1] / diameter[0])
    if growth >= GROWTH_LIMIT or growth <= 1 / GROWTH_LIMIT:
        return "growing" if growth > 1 else "shrinking"
    if float(diameter.max() / diameter.min()) > STEADY_LIMIT:
        return ""
    turn = abs(float(angle[-1] - angle[0]))
    if shape == "circle" or turn == 0:
        return "still"
    return "rotating" if turn >= TURN_LIMIT else ""


def path_length(x: Track, y: Track) -> float:
    """Length of the center's path over the clip, in short sides."""
    return float(np.hypot(np.diff(x), np.diff(y)).sum())


def speed_seen(x: Track, y: Track) -> str:
    """ "none" for an object that keeps its place, else "slow" or "fast" by the length of its path."""
    path = path_length(x, y)
    if path <= IN_PLACE_LIMIT:
        return "none"
    return "slow" if path < SPEED_LIMIT else "fast"


def size_seen(diameter: Track) -> str:
    """ "varying" for a diameter that changes, else the nearest size by ratio."""
    if float(diameter.max() / diameter.min()) > STEADY_LIMIT:
        return "varying"
    middle = float(np.exp(np.log(diameter).mean()))
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / middle)))


def position_seen(x: Track, y: Track) -> str:
    """The place in the frame of an object that keeps it (x, y in [0, 1]), or "" where it is not clear."""
    column = _third(x, "left", "right")
    row = _third(y, "upper", "lower")
    if column is None or row is None:
        return ""
    if not column:
        return {"": CENTRE, "upper": "top", "lower": "bottom"}[row]
    return f"{row} {column}".strip()


def _third(track: Track, low: str, high: str) -> str | None:
    first, inner, outer, last = PLACE_LIMITS
    least, most = float(track.min()), float(track.max())
    if most <= first:
        return low
    if least >= last:
        return high
    return "" if inner <= least and most <= outer else None


def relation_seen(x: Track, y: Track, other_x: Track, other_y: Track) -> tuple[str, ...]:
    """Where the first object is, seen from the other, per frame; "" where that is unclear.

    Clear means at least 0.28 short sides apart along one axis and at most half as far along the other.
    """
    return tuple(_relation(dx, dy) for dx, dy in zip(x - other_x, y - other_y, strict=True))


def _relation(dx: float, dy: float) -> str:
    if abs(dx) >= max(RELATION_DISTANCE, 2 * abs(dy)):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= max(RELATION_DISTANCE, 2 * abs(dx)):
        return "above" if dy < 0 else "below"
    return ""


@dataclass(frozen=True)
class Relation:
    """The relation in frame 0 and for how many frames from there it holds."""

    name: str
    frames: int


def leading_relation(bodies: tuple[Body, ...]) -> Relation:
    """Where the first body is, seen from the second."""
    if len(bodies) < 2:
        return Relation("", 0)
    first, second = bodies
    names = relation_seen(first.x, first.y, second.x, second.y)
    if not names[0]:
        return Relation("", 0)
    return Relation(names[0], next((i for i, name in enumerate(names) if name != names[0]), len(names)))


def describe(scene: Scene, occlusion: bool) -> Factors:
    """The factors of a scene, with nothing named yet."""
    relation = leading_relation(scene.bodies)
    return Factors(
        objects=tuple(describe_body(body, scene.canvas) for body in scene.bodies),
        background=scene.background.pattern,
        background_colors=scene.background.colors,
        camera=scene.camera,
        occlusion=occlusion,
        relation=relation.name,
        relation_frames=relation.frames,
        named=(),
    )


def describe_body(body: Body, canvas: Canvas) -> ObjectFactors:
    """The factors of one object."""
    motion = motion_seen(body.x, body.y, body.diameter, body.angle, body.shape)
    x, y = body.x / canvas.wide, body.y / canvas.high
    return ObjectFactors(
        shape=body.shape,
        color=body.color,
        size=size_seen(body.diameter),
        motion=motion,
        speed=speed_seen(body.x, body.y),
        position=position_seen(x, y) if path_length(body.x, body.y) <= IN_PLACE_LIMIT else "",
        x=_rounded(x),
        y=_rounded(y),
        diameter=_rounded(body.diameter),
        angle=_rounded(body.angle),
    )


def _rounded(track: Track) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in track)


def carried(motion: str, camera: str) -> bool:
    """Whether a motion on screen is that of an object at rest under the camera."""
    if camera in PANS:
        dx, dy = PANS[camera]
        return motion in DIRECTIONS and DIRECTIONS[motion] == (-dx, -dy)
    return (camera, motion) in {("zoom in", "growing"), ("zoom out", "shrinking")}
