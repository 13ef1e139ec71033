"""Random scenes of moving shapes, each with a clear name for every one of its factors."""

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from vidlab.data.moving_shapes.factors import PLACE_LIMITS
from vidlab.data.moving_shapes.render import coverage, zoom_of
from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    BOUNCE,
    COLORS,
    CROSSING,
    DIRECTIONS,
    FAST,
    GROWTH,
    MOTIONS,
    PAN,
    PANS,
    SHAPES,
    SIZE_JITTER,
    SIZES,
    SLOW,
    TILE,
    TURN,
    ZOOM,
    Background,
    Body,
    Canvas,
    Extent,
    Scene,
    Track,
    extent_of,
)

GAP = 0.04  # between the outlines of two objects that do not meet
COVERED = (0.25, 0.8)  # the share of an occluded object that is hidden at the height of it
UNCOVERED = 0.1  # the share that may be hidden in the first and last frame
ATTEMPTS = 1000


@dataclass(frozen=True)
class SceneSample:
    """A scene and whether its front object is seen to pass before the back one."""

    scene: Scene
    occlusion: bool = False


def sample_scene(rng: Random, canvas: Canvas, difficulty: str) -> SceneSample:
    """Draw a scene.

    "plain" has one object, a plain background and a fixed camera. "rich" adds textured backgrounds, a second
    object, occlusion, and a camera that pans or zooms over a striped or checkered background.
    """
    if difficulty == "plain":
        background = Background("plain", (rng.choice(tuple(BACKGROUND_COLORS)),))
        return SceneSample(Scene(canvas, (_body(rng, canvas, _looks(rng)),), background))
    camera = _camera(rng)
    background = _background(rng, camera)
    scene = Scene(canvas, (), background, camera)
    if camera.startswith("zoom"):
        return SceneSample(replace(scene, bodies=(_zoomed(rng, canvas, _looks(rng), camera),)))
    if rng.random() < 0.5:
        return SceneSample(replace(scene, bodies=(_body(rng, canvas, _looks(rng), camera),)))
    first = _looks(rng)
    second = _looks(rng, other=first)
    if camera == "fixed" and rng.random() < 0.4:
        return SceneSample(replace(scene, bodies=_crossing(rng, canvas, first, second)), occlusion=True)
    return SceneSample(replace(scene, bodies=_apart(rng, canvas, first, second, camera)))


@dataclass(frozen=True)
class _Looks:
    shape: str
    color: str


def _looks(rng: Random, other: _Looks | None = None) -> _Looks:
    """A shape and a color; both differ from the other object's, so that a caption tells the two apart."""
    shapes = [shape for shape in SHAPES if other is None or shape != other.shape]
    colors = [color for color in COLORS if other is None or color != other.color]
    return _Looks(rng.choice(shapes), rng.choice(colors))


def _camera(rng: Random) -> str:
    if rng.random() < 0.6:
        return "fixed"
    return rng.choice((*PANS, "zoom in", "zoom out"))


def _background(rng: Random, camera: str) -> Background:
    """A background on which the camera can be seen: a pan crosses the stripes, a gradient stays."""
    if camera == "fixed":
        pattern = rng.choices(("plain", "striped", "checkered", "gradient"), (0.3, 0.25, 0.25, 0.2))[0]
    else:
        pattern = rng.choice(("striped", "checkered"))
    colors = tuple(rng.sample(tuple(BACKGROUND_COLORS), 1 if pattern == "plain" else 2))
    vertical = PANS[camera][1] != 0 if camera in PANS else rng.random() < 0.5
    return Background(pattern, colors, vertical, rng.uniform(*TILE), (2 * rng.random(), 2 * rng.random()))


def _size(rng: Random, names: tuple[str, ...] = tuple(SIZES)) -> float:
    return SIZES[rng.choice(names)] * (1 + SIZE_JITTER * (2 * rng.random() - 1))


def _body(
    rng: Random, canvas: Canvas, looks: _Looks, camera: str = "fixed", sizes: tuple[str, ...] = tuple(SIZES)
) -> Body:
    """One object with a motion drawn from all that its shape can show, inside the frame throughout."""
    if camera in PANS and rng.random() < 0.4:
        dx, dy = PANS[camera]
        return _linear(rng, canvas, looks, (-dx, -dy), PAN, np.full(canvas.frames, _size(rng, sizes)))
    motions = [name for name in MOTIONS if name != "rotating" or looks.shape != "circle"]
    motion = rng.choice(motions)
    if motion in DIRECTIONS:
        length = rng.uniform(*rng.choice((SLOW, FAST)))
        return _linear(rng, canvas, looks, DIRECTIONS[motion], length, np.full(canvas.frames, _size(rng, sizes)))
    if motion == "bouncing":
        return _bouncing(rng, canvas, looks, sizes)
    return _in_place(rng, canvas, looks, motion, sizes)


def _in_place(rng: Random, canvas: Canvas, looks: _Looks, motion: str, sizes: tuple[str, ...]) -> Body:
    """An object that keeps its place: still, rotating, growing or shrinking."""
    diameter, angle = np.full(canvas.frames, _size(rng, sizes)), np.zeros(canvas.frames)
    if motion == "rotating":
        # A small object's turning is lost among its edge pixels.
        diameter = np.full(canvas.frames, _size(rng, tuple(name for name in sizes if name != "small")))
        turn = rng.uniform(*TURN) * rng.choice((-1, 1))
        angle = turn * canvas.time + rng.uniform(0, 2 * math.pi)
    if motion in ("growing", "shrinking"):
        end = _size(rng, ("large",) if "large" in sizes else ("medium",))
        diameter = np.geomspace(end / rng.uniform(*GROWTH), end, canvas.frames)
        diameter = diameter[::-1].copy() if motion == "shrinking" else diameter
    reach = extent_of(looks.shape, turns=motion == "rotating")
    most = float(diameter.max())
    x = _place(rng, reach.left * most, canvas.wide - reach.right * most, canvas.wide)
    y = _place(rng, reach.up * most, canvas.high - reach.down * most, canvas.high)
    still = np.ones(canvas.frames)
    return Body(looks.shape, looks.color, x * still, y * still, diameter, angle)


def _place(rng: Random, least: float, most: float, length: float) -> float:
    """A place along one axis that is clearly low, middle or high, where the object fits."""
    first, inner, outer, last = (limit * length for limit in PLACE_LIMITS)
    spans = [(inner, outer), (least, first), (last, most)]
    return rng.uniform(*rng.choice([span for span in spans if span[0] <= span[1]]))


def _linear(
    rng: Random, canvas: Canvas, looks: _Looks, unit: tuple[float, float], length: float, diameter: Track
) -> Body:
    """An object that crosses a straight line at constant speed and never leaves the frame."""
    reach = extent_of(looks.shape, turns=False)
    most = float(diameter.max())
    x = _path(rng, unit[0] * length * canvas.time, reach.left * most, canvas.wide - reach.right * most)
    y = _path(rng, unit[1] * length * canvas.time, reach.up * most, canvas.high - reach.down * most)
    return Body(looks.shape, looks.color, x, y, diameter, np.zeros(canvas.frames))


def _path(rng: Random, shift: Track, least: float, most: float) -> Track:
    """A track with the given displacements that stays within [least, most]."""
    first, last = least - float(shift.min()), most - float(shift.max())
    if first > last:
        raise ValueError(f"a path of {float(np.ptp(shift)):.3f} does not fit between {least:.3f} and {most:.3f}")
    return rng.uniform(first, last) + shift


def _bouncing(rng: Random, canvas: Canvas, looks: _Looks, sizes: tuple[str, ...]) -> Body:
    """An object that runs straight into an edge of the frame, touches it in one frame, and comes back."""
    diameter = _size(rng, sizes)
    reach = extent_of(looks.shape, turns=False)
    last = canvas.frames - 1
    turn = rng.randint(math.ceil(last / 3), last - math.ceil(last / 3))
    distance = rng.uniform(*BOUNCE) * np.abs(np.arange(canvas.frames) - turn) / last
    wall = rng.choice(("left", "right", "top", "bottom"))
    sideways = _path(rng, np.zeros(canvas.frames), *_room(canvas, reach, diameter, across=wall in ("top", "bottom")))
    low, high = _room(canvas, reach, diameter, across=wall in ("left", "right"))
    along = low + distance if wall in ("left", "top") else high - distance
    x, y = (along, sideways) if wall in ("left", "right") else (sideways, along)
    steady = np.full(canvas.frames, diameter)
    return Body(looks.shape, looks.color, x, y, steady, np.zeros(canvas.frames))


def _room(canvas: Canvas, reach: Extent, diameter: float, across: bool) -> tuple[float, float]:
    """The least and the greatest coordinate at which a shape touches the frame's edges from inside."""
    if across:
        return reach.left * diameter, canvas.wide - reach.right * diameter
    return reach.up * diameter, canvas.high - reach.down * diameter


def _zoomed(rng: Random, canvas: Canvas, looks: _Looks, camera: str) -> Body:
    """An object scaled by the camera: at rest near the middle, or moving straight over the screen."""
    diameter = rng.uniform(0.225, 0.28) * zoom_of(camera, canvas)
    if rng.random() < 0.5:
        length = rng.uniform(*rng.choice((SLOW, FAST)))
        return _linear(rng, canvas, looks, rng.choice(tuple(DIRECTIONS.values())), length, diameter)
    # A point off the middle flows outwards by (ZOOM - 1) times its distance, here under half a pixel at 32.
    away = 0.015 / (ZOOM - 1) * zoom_of(camera, canvas) * rng.random()
    turn = rng.uniform(0, 2 * math.pi)
    x, y = canvas.wide / 2 + math.cos(turn) * away, canvas.high / 2 + math.sin(turn) * away
    return Body(looks.shape, looks.color, x, y, diameter, np.zeros(canvas.frames))


def _apart(rng: Random, canvas: Canvas, first: _Looks, second: _Looks, camera: str) -> tuple[Body, Body]:
    """Two objects that never meet."""
    sizes = ("small", "medium")
    for _ in range(ATTEMPTS):
        one, two = (_body(rng, canvas, looks, camera, sizes) for looks in (first, second))
        if np.hypot(one.x - two.x, one.y - two.y).min() >= one.reach + two.reach + GAP:
            return one, two
    raise RuntimeError(f"no two objects that stay apart after {ATTEMPTS} attempts on {canvas}")


def _crossing(rng: Random, canvas: Canvas, first: _Looks, second: _Looks) -> tuple[Body, Body]:
    """A small object that passes before a still, medium one, clear of it in the first and the last frame."""
    for _ in range(ATTEMPTS):
        behind, before = _size(rng, ("medium",)), _size(rng, ("small",))
        unit = rng.choice(tuple(DIRECTIONS.values()))
        back, front = extent_of(first.shape, turns=False), extent_of(second.shape, turns=False)
        aside = rng.uniform(-0.06, 0.06)
        shift_x = CROSSING * unit[0] * (canvas.time - 0.5) - aside * unit[1]
        shift_y = CROSSING * unit[1] * (canvas.time - 0.5) + aside * unit[0]
        x = _shared(rng, _room(canvas, back, behind, True), _room(canvas, front, before, True), shift_x)
        y = _shared(rng, _room(canvas, back, behind, False), _room(canvas, front, before, False), shift_y)
        if x is None or y is None:
            continue
        one, none = np.ones(canvas.frames), np.zeros(canvas.frames)
        still = Body(first.shape, first.color, x * one, y * one, behind * one, none)
        passing = Body(second.shape, second.color, x + shift_x, y + shift_y, before * one, none)
        if _seen_to_pass(still, passing, canvas):
            return still, passing
    raise RuntimeError(f"no object that passes before another after {ATTEMPTS} attempts on {canvas}")


def _shared(rng: Random, back: tuple[float, float], front: tuple[float, float], shift: Track) -> float | None:
    """A coordinate of the back object with which it and the front one, displaced, stay in the frame."""
    least = max(back[0], front[0] - float(shift.min()))
    most = min(back[1], front[1] - float(shift.max()))
    return rng.uniform(least, most) if least <= most else None


def _seen_to_pass(back: Body, front: Body, canvas: Canvas) -> bool:
    """Whether the front object hides a clear part of the back one, and next to nothing at both ends."""
    behind = coverage(back, canvas)
    hidden = (behind * coverage(front, canvas)).sum((1, 2)) / behind.sum((1, 2))
    ends = max(float(hidden[0]), float(hidden[-1]))
    return ends <= UNCOVERED and COVERED[0] <= float(hidden.max()) <= COVERED[1]
