"""The moving-shapes data set: what its captions name is measured on the pixels, not read from the sampler."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from vidlab.data.moving_shapes import MovingShapes, RenderedClip
from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    CAMERAS,
    COLORS,
    DIRECTIONS,
    MOTIONS,
    PAN,
    PANS,
    SIZES,
    ZOOM,
)

CLIPS = (300, 3000)  # in every run of the tests, and in those of ``-m slow``
PALETTE = COLORS | BACKGROUND_COLORS
NAMES = tuple(PALETTE)
VALUES = np.array(list(PALETTE.values()), np.float32)


@dataclass(frozen=True)
class Blob:
    """The pixels of one color: mask (T, H, W), area (T,) in pixels, center x and y (T,) in short sides."""

    mask: np.ndarray
    area: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @property
    def path(self) -> float:
        return float(np.hypot(np.diff(self.x), np.diff(self.y)).sum())


def blobs_of(clip: RenderedClip) -> list[Blob]:
    """Pixels whose nearest palette color is the object's, with a pixel of nearly that very color beside.

    Without the second condition the blended edges of a yellow object count as an orange one.
    """
    pixels = clip.frames.astype(np.float32)
    distances = (VALUES**2).sum(1) - 2 * pixels @ VALUES.T
    labels = distances.argmin(-1)
    pure = distances.min(-1) + (pixels**2).sum(-1) < 60**2
    masks = [labels == NAMES.index(seen.color) for seen in clip.factors.objects]
    return [blob_of(mask & widened(mask & pure)) for mask in masks]


def blob_of(mask: np.ndarray) -> Blob:
    area = mask.sum((1, 2))
    assert area.min() > 0
    height, width = mask.shape[1:]
    short = min(height, width)
    x = (mask.sum(1) * (np.arange(width) + 0.5)).sum(1) / area / short
    y = (mask.sum(2) * (np.arange(height) + 0.5)).sum(1) / area / short
    return Blob(mask, area, x, y)


def widened(mask: np.ndarray, by: int = 1) -> np.ndarray:
    """The pixels at most ``by`` rows and columns from the mask (T, H, W)."""
    height, width = mask.shape[1:]
    wide = np.pad(mask, ((0, 0), (by, by), (by, by)))
    offsets = range(2 * by + 1)
    return np.any([wide[:, j : j + height, i : i + width] for i in offsets for j in offsets], axis=0)


def covered(blobs: list[Blob]) -> np.ndarray:
    """Pixels within two of any blob (T, H, W): further than the faintest edge of an object."""
    return widened(np.any([blob.mask for blob in blobs], axis=0), 2)


def check_motion(clip: RenderedClip, index: int, blob: Blob) -> None:
    seen = clip.factors.objects[index]
    shift = np.array([blob.x[-1] - blob.x[0], blob.y[-1] - blob.y[0]])
    hidden = clip.factors.occlusion and index == 0
    if seen.motion in DIRECTIONS:
        assert np.hypot(*shift) > 0.11
        assert shift @ np.array(DIRECTIONS[seen.motion]) / np.hypot(*shift) > math.cos(math.radians(15))
        return
    if seen.motion == "bouncing":
        far = np.hypot(blob.x - blob.x[0], blob.y - blob.y[0])
        turn = int(far.argmax())
        assert 0 < turn < len(far) - 1
        assert far[turn] > 0.15
        assert np.hypot(blob.x - blob.x[turn], blob.y - blob.y[turn])[-1] > 0.15
        edge = blob.mask[turn]
        assert edge[:2].any() or edge[-2:].any() or edge[:, :2].any() or edge[:, -2:].any()
        return
    if not hidden:
        assert np.hypot(blob.x - blob.x[0], blob.y - blob.y[0]).max() < 0.05
    ratio = blob.area[-1] / blob.area[0]
    if seen.motion == "growing":
        assert ratio > 2
        assert math.sqrt(blob.area[-1]) - math.sqrt(blob.area[0]) > 2
    elif seen.motion == "shrinking":
        assert ratio < 0.5
    elif seen.motion == "rotating":
        assert seen.shape != "circle"
        assert 0.75 < ratio < 1.33
        changed = (blob.mask ^ blob.mask[0]).sum((1, 2)).max() / blob.area[0]
        assert changed > 0.12
    elif clip.factors.camera == "fixed" and not hidden:
        assert (blob.mask == blob.mask[0]).all()


def check_size(clip: RenderedClip, index: int, blob: Blob) -> None:
    seen = clip.factors.objects[index]
    area = blob.area[0] if clip.factors.occlusion else blob.area.mean()
    diameter = math.sqrt(4 * area / math.pi) / 32
    assert min(SIZES, key=lambda name: abs(math.log(SIZES[name] / diameter))) == seen.size


def check_position(clip: RenderedClip, index: int, blob: Blob) -> None:
    name = clip.factors.objects[index].position
    for frame in range(len(blob.x)):
        x, y = blob.x[frame], blob.y[frame]
        assert ("left" in name) == (x < 0.4) and ("right" in name) == (x > 0.6)
        assert (name in ("top",) or "upper" in name) == (y < 0.4)
        assert (name in ("bottom",) or "lower" in name) == (y > 0.6)


def check_background(clip: RenderedClip, free: np.ndarray) -> None:
    """Plain: one value; striped, gradient: constant along one axis, two values or many; checkered: not."""
    first = clip.frames[0].astype(float)
    pixels = first[free]
    colors = [np.array(BACKGROUND_COLORS[name]) for name in clip.factors.background_colors]
    off_line = _distance_to_segment(pixels, colors[0], colors[-1])
    assert off_line.max() < 3
    if clip.factors.background == "plain":
        return
    holes = np.where(free[..., None], first, np.nan)
    along = min(np.nanmax(np.nanmax(holes, axis) - np.nanmin(holes, axis)) for axis in (0, 1))
    pure = np.min([np.abs(pixels - color).max(1) for color in colors], axis=0) < 3
    if clip.factors.background == "checkered":
        assert along > 50
    else:
        assert along < 3
    assert (pure.mean() > 0.4) == (clip.factors.background != "gradient")


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    length = float(((end - start) ** 2).sum())
    share = np.clip((points - start) @ (end - start) / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - start - share[:, None] * (end - start), axis=1)


def check_camera(clip: RenderedClip, free: np.ndarray) -> None:
    """Of all camera motions, the named one explains best how the background changes over two frames."""
    errors = {}
    step, frames = 2, len(clip.frames)
    grid = (np.arange(32) + 0.5) / 32
    for camera in CAMERAS:
        dx, dy = PANS.get(camera, (0.0, 0.0))
        scale = {"zoom in": ZOOM, "zoom out": 1 / ZOOM}.get(camera, 1.0) ** (step / (frames - 1))
        move = PAN * step / (frames - 1)
        x = np.floor(((grid - 0.5) / scale + 0.5 + dx * move) * 32).astype(int)
        y = np.floor(((grid - 0.5) / scale + 0.5 + dy * move) * 32).astype(int)
        inside = ((y >= 0) & (y < 32))[:, None] & ((x >= 0) & (x < 32))
        x, y = x.clip(0, 31), y.clip(0, 31)
        before = clip.frames[:-step][:, y[:, None], x].astype(float)
        usable = free[step:] & free[:-step][:, y[:, None], x] & inside
        errors[camera] = np.abs(clip.frames[step:] - before).mean(-1)[usable].mean()
    assert min(errors, key=lambda name: errors[name]) == clip.factors.camera


def check_pair(clip: RenderedClip, blobs: list[Blob]) -> None:
    back, front = clip.factors.objects
    assert back.color != front.color
    assert back.shape != front.shape
    if "occlusion" in clip.factors.named:
        assert blobs[0].area.min() < 0.8 * max(blobs[0].area[0], blobs[0].area[-1])
        assert blobs[1].area.min() > 0.6 * blobs[1].area.max()
        middle = int(blobs[0].area.argmin())
        # The front object is whole where the back one is hidden, and passes to its other side.
        before = np.array([blobs[1].x[0] - blobs[0].x[0], blobs[1].y[0] - blobs[0].y[0]])
        after = np.array([blobs[1].x[-1] - blobs[0].x[-1], blobs[1].y[-1] - blobs[0].y[-1]])
        assert 0 < middle < len(clip.frames) - 1
        assert before @ after < 0
    if "relation" in clip.factors.named:
        axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[clip.factors.relation]
        for frame in range(clip.factors.relation_frames):
            apart = [blobs[0].x[frame] - blobs[1].x[frame], blobs[0].y[frame] - blobs[1].y[frame]]
            assert apart[axis] * sign > 0.25
            assert abs(apart[1 - axis]) < 0.6 * abs(apart[axis])


@pytest.mark.parametrize("clips", [CLIPS[0], pytest.param(CLIPS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("difficulty", ["plain", "rich"])
def test_what_captions_name_is_on_the_screen(difficulty: str, clips: int) -> None:
    shapes = MovingShapes(difficulty=difficulty)
    checked: Counter[str] = Counter()
    texts = set()
    for index in range(clips):
        clip = shapes.render(index)
        named = clip.factors.named
        texts.add(clip.caption)
        blobs = blobs_of(clip)
        free = ~covered(blobs)
        for number, (seen, blob) in enumerate(zip(clip.factors.objects, blobs, strict=True)):
            prefix = f"objects.{number}."
            assert {prefix + "color", prefix + "shape"} <= set(named)
            assert (seen.motion, seen.speed) != ("", "") and seen.motion in MOTIONS
            if prefix + "motion" in named:
                check_motion(clip, number, blob)
            if prefix + "speed" in named:
                assert (blob.path > 0.3) == (seen.speed == "fast")
            if prefix + "size" in named:
                check_size(clip, number, blob)
            if prefix + "position" in named:
                check_position(clip, number, blob)
            checked[seen.motion] += 1
        if {"background", "background_colors"} & set(named):
            check_background(clip, free[0])
        if "camera" in named:
            check_camera(clip, free)
        if len(blobs) == 2:
            check_pair(clip, blobs)
        checked.update(named)
    assert len(texts) > 0.95 * clips
    assert all(checked[motion] > clips / 75 for motion in MOTIONS)
    if difficulty == "rich":
        assert min(checked[name] for name in ("camera", "occlusion", "relation", "objects.1.motion")) > clips / 30


def test_colors_are_far_apart() -> None:
    def distance(one: str, two: str) -> float:
        return math.dist(PALETTE[one], PALETTE[two])

    assert min(distance(*pair) for pair in combinations(COLORS, 2)) >= 95
    assert min(distance(*pair) for pair in combinations(BACKGROUND_COLORS, 2)) >= 80
    points = np.array(list(COLORS.values()), float)
    for one, two in combinations(BACKGROUND_COLORS.values(), 2):
        assert _distance_to_segment(points, np.array(one), np.array(two)).min() >= 90
