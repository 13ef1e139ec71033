"""Grading what was seen against the factors that a caption names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from vidlab.data.moving_shapes.factors import PLACE_LIMITS, RELATION_DISTANCE
from vidlab.data.moving_shapes.scene import BACKGROUND_COLORS, COLORS, SIZES, Canvas
from vidlab.factors import Factors, ObjectFactors
from vidlab.metrics.shapes.motion import motion_score, speed_score
from vidlab.metrics.shapes.parsed_scene import Floats, ParsedScene, SeenObject, ramp

# Named after the VBench dimensions they stand for, where there is one: name -> (that dimension, what is graded).
DIMENSIONS: Mapping[str, tuple[str, str]] = {
    "object_class": ("object_class", "the shapes of the objects"),
    "color": ("color", "the colors of the objects"),
    "object_count": ("multiple_objects", "as many objects as the caption speaks of, in every frame"),
    "multiple_objects": ("multiple_objects", "both of two objects are there, of the right shape and color"),
    "size": ("", "the sizes of the objects"),
    "position": ("", "where resting objects are in the frame"),
    "motion_direction": ("human_action", "what the objects do: a direction, or resting, bouncing, turning, growing"),
    "speed": ("dynamic_degree", "slow or fast"),
    "spatial_relationship": ("spatial_relationship", "where the objects are, seen from each other"),
    "occlusion": ("spatial_relationship", "the front object passes before the other"),
    "scene": ("scene", "pattern and colors of the background"),
    "camera_motion": ("camera_motion", "pans and zooms"),
    "subject_consistency": ("subject_consistency", "the objects keep color and shape in every frame"),
    "background_consistency": ("background_consistency", "one moving pattern explains the background"),
    "temporal_flickering": ("temporal_flickering", "nothing flickers that neither objects nor background explain"),
}
"""Every dimension of the judge. Those without a VBench name have no counterpart there."""

# name -> (part of the width, part of the height)
POSITIONS = {
    "upper left": ("low", "low"),
    "top": ("middle", "low"),
    "upper right": ("high", "low"),
    "left": ("low", "middle"),
    "centre": ("middle", "middle"),
    "right": ("high", "middle"),
    "lower left": ("low", "high"),
    "bottom": ("middle", "high"),
    "lower right": ("high", "high"),
}
COLOR_RIGHT, COLOR_WRONG = 30.0, 80.0  # distances in RGB; any two names are at least 80 apart
PATTERN_NONE, PATTERN_RIGHT = 0.4, 0.9  # correlations with the named pattern
CAMERA_NONE, CAMERA_RIGHT = 0.5, 0.92  # correlations with the pattern moved by the named camera
CAMERA_MARGIN = 0.15  # by how much another camera must fit better to rule the named one out
PLACE_SLACK = 0.12  # how far from its region an object counts as elsewhere
SIZE_STEP = math.log(SIZES["medium"] / SIZES["small"])
FLICKER_FLOOR = 0.6293  # the score that VBench maps to 0
FLICKER_FREE = 2.0  # gray levels of change that come from drawing alone
HIDDEN_SHARE = 0.15  # of the back object, at least, when another passes before it


@dataclass(frozen=True)
class Grade:
    """One clip's scores in [0, 1] by dimension; dimensions of which the caption says nothing are left out."""

    scores: Mapping[str, float]

    @property
    def total(self) -> float:
        """Mean over the graded dimensions."""
        return sum(self.scores.values()) / len(self.scores)


def grade(seen: ParsedScene, factors: Factors) -> Grade:
    """Grade what was seen against the named factors, and the clip's consistency, which needs no naming."""
    matched = match(seen.objects, factors.objects)
    pairs = list(zip(matched, factors.objects, strict=True))
    scores: dict[str, list[float]] = {}

    def note(dimension: str, value: float) -> None:
        scores.setdefault(dimension, []).append(value)

    for index, (found, wanted) in enumerate(pairs):
        named = {name.rsplit(".", 1)[1] for name in factors.named if name.startswith(f"objects.{index}.")}
        for dimension, value in _object_scores(found, wanted, named, seen.canvas).items():
            note(dimension, value)
    note("object_count", _count(seen.counts, len(factors.objects)))
    if len(pairs) == 2:
        note("multiple_objects", min(_there(found, wanted) for found, wanted in pairs))
    if "relation" in factors.named:
        note("spatial_relationship", _relation(matched, factors))
    if "occlusion" in factors.named:
        note("occlusion", _occlusion(matched))
    if "background" in factors.named:
        note("scene", _pattern(seen.background.patterns, factors.background))
    if "background_colors" in factors.named:
        note("scene", background_color_score(seen.background.colors, factors.background_colors))
    if "camera" in factors.named:
        note("camera_motion", _camera(seen.background.cameras, factors.camera))
    note("subject_consistency", float(np.mean([0.0 if one is None else one.consistency for one in matched])))
    note("background_consistency", seen.background.consistency)
    note("temporal_flickering", ramp(1 - max(0.0, seen.flicker - FLICKER_FREE) / 255, FLICKER_FLOOR, 1.0))
    return Grade({name: float(np.mean(scores[name])) for name in DIMENSIONS if name in scores})


def match(seen: tuple[SeenObject, ...], wanted: tuple[ObjectFactors, ...]) -> tuple[SeenObject | None, ...]:
    """Which seen object stands for each wanted one, so that colors and shapes fit best; None for a missing one."""
    candidates: list[SeenObject | None] = [*seen[: len(wanted) + 2], *[None] * len(wanted)]

    def likeness(found: SeenObject | None, named: ObjectFactors) -> float:
        return 0.0 if found is None else 0.01 + color_score(found, named.color) + found.shapes[named.shape]

    def total(choice: tuple[SeenObject | None, ...]) -> float:
        return sum(likeness(found, named) for found, named in zip(choice, wanted, strict=True))

    return max(permutations(candidates, len(wanted)), key=total)


def color_score(found: SeenObject, name: str) -> float:
    """1 for a color near the named one, 0 for one that is as far from it as the next name."""
    return ramp(float(np.linalg.norm(found.color - np.array(COLORS[name]))), COLOR_WRONG, COLOR_RIGHT)


def background_color_score(found: Floats, names: tuple[str, ...]) -> float:
    """Mean over the named colors of the best one-to-one match with the found ones; colors in any order."""
    wanted = np.array([BACKGROUND_COLORS[name] for name in names], np.float32)
    distances = np.linalg.norm(found[:, None] - wanted, axis=-1)
    scores = np.clip((COLOR_WRONG - distances) / (COLOR_WRONG - COLOR_RIGHT), 0, 1)
    larger = max(scores.shape)
    square = np.zeros((larger, larger))
    square[: scores.shape[0], : scores.shape[1]] = scores
    return max(float(square[list(order), range(larger)].mean()) for order in permutations(range(larger)))


def _object_scores(
    found: SeenObject | None, wanted: ObjectFactors, named: set[str], canvas: Canvas
) -> dict[str, float]:
    """The named dimensions of one object, all 0 if it is missing."""
    dimensions = {
        "shape": "object_class",
        "color": "color",
        "size": "size",
        "position": "position",
        "motion": "motion_direction",
        "speed": "speed",
    }
    if found is None:
        return {dimension: 0.0 for factor, dimension in dimensions.items() if factor in named}
    graders = {
        "shape": lambda: found.shapes[wanted.shape],
        "color": lambda: color_score(found, wanted.color),
        "size": lambda: size_score(found, wanted.size),
        "position": lambda: position_score(found, wanted.position, canvas),
        "motion": lambda: motion_score(found, wanted.shape, wanted.motion, canvas),
        "speed": lambda: speed_score(found, wanted.speed),
    }
    # What is there in half of the frames is half right.
    share = float(found.present.mean())
    return {dimensions[factor]: share * grader() for factor, grader in graders.items() if factor in named}


def _count(counts: Floats, wanted: int) -> float:
    return float(np.clip(1 - np.abs(counts - wanted) / wanted, 0, 1).mean())


def _there(found: SeenObject | None, wanted: ObjectFactors) -> float:
    if found is None:
        return 0.0
    return float(found.present.mean()) * (color_score(found, wanted.color) + found.shapes[wanted.shape]) / 2


def size_score(found: SeenObject, name: str) -> float:
    """1 for a size near the named one, 0 for one as far from it as the next name."""
    off = abs(math.log(max(float(np.median(found.diameter)), 1e-3) / SIZES[name]))
    return ramp(off, SIZE_STEP, SIZE_STEP / 3)


def position_score(found: SeenObject, name: str, canvas: Canvas) -> float:
    """1 for an object that stays in the named part of the frame."""
    column, row = POSITIONS[name]
    x, y = float(np.median(found.x)) / canvas.wide, float(np.median(found.y)) / canvas.high
    away = max(_outside(x, column), _outside(y, row))
    moved = max(float(np.ptp(found.x)) / canvas.wide, float(np.ptp(found.y)) / canvas.high)
    return ramp(away, PLACE_SLACK, 0.01) * ramp(moved, 4 * PLACE_SLACK, PLACE_SLACK)


def _outside(value: float, third: str) -> float:
    """How far a place along an axis is from the low, the middle or the high part of it."""
    first, inner, outer, last = PLACE_LIMITS
    low, high = {"low": (0.0, first), "middle": (inner, outer), "high": (last, 1.0)}[third]
    return max(low - value, value - high, 0.0)


def _relation(matched: tuple[SeenObject | None, ...], factors: Factors) -> float:
    first, second = matched
    if first is None or second is None:
        return 0.0
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[factors.relation]
    frames = max(1, round(factors.relation_frames / len(factors.objects[0].x) * len(first.x)))
    apart = np.stack([first.x - second.x, first.y - second.y])[:, :frames]
    along, aside = sign * apart[axis], np.abs(apart[1 - axis])
    both = (first.present & second.present)[:frames]
    far = np.clip(along / (0.9 * RELATION_DISTANCE), 0, 1)
    aligned = np.clip((1 - aside / np.maximum(along, 1e-6)) / 0.4, 0, 1)
    return float((far * aligned * both).mean())


def _occlusion(matched: tuple[SeenObject | None, ...]) -> float:
    """The back object loses area while the front one keeps its own, and the front one comes out on the other side."""
    back, front = matched
    if back is None or front is None:
        return 0.0
    lost = 1 - float(back.area.min() / back.area.max())
    kept = float(np.median(front.area) and front.area.min() / np.median(front.area))
    before, after = (np.array([front.x[i] - back.x[i], front.y[i] - back.y[i]]) for i in (0, -1))
    cosine = float(before @ after / max(float(np.linalg.norm(before) * np.linalg.norm(after)), 1e-6))
    inside = 0 < int(back.area.argmin()) < len(back.area) - 1
    return inside * ramp(lost, 0.3 * HIDDEN_SHARE, HIDDEN_SHARE) * ramp(kept, 0.3, 0.7) * ramp(cosine, 0.0, -0.5)


def _pattern(patterns: Mapping[str, float], name: str) -> float:
    """The correlation with the named pattern, where no other one fits better."""
    best = max(patterns, key=lambda pattern: patterns[pattern])
    return ramp(patterns[name], PATTERN_NONE, PATTERN_RIGHT) if best == name else 0.0


def _camera(cameras: Mapping[str, float], name: str) -> float:
    """The correlation with the pattern under the named camera, where no other one fits clearly better."""
    rival = max(value for camera, value in cameras.items() if camera != name)
    return ramp(cameras[name], CAMERA_NONE, CAMERA_RIGHT) * ramp(cameras[name] - rival, -CAMERA_MARGIN, 0.0)
