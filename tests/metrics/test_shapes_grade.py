"""Grading clips of moving shapes: the truth scores 1, and every damage lowers what it should and nothing else."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from shapes_damage import Pixels, blurred, frozen, noisy, recolored, shuffled

from vidlab.data.moving_shapes import MovingShapes, RenderedClip
from vidlab.data.moving_shapes.render import render_scene
from vidlab.data.moving_shapes.scene import MOTIONS, Background, Body, Canvas, Scene
from vidlab.factors import Factors
from vidlab.metrics.shapes.grade import DIMENSIONS, background_color_score, color_score, grade, match
from vidlab.metrics.shapes.motion import motion_score, speed_score
from vidlab.metrics.shapes.parse import parse_scene
from vidlab.metrics.shapes.parsed_scene import ParsedScene, SeenObject, ramp

CLIPS = 24
ALWAYS = ("object_count", "subject_consistency", "background_consistency", "temporal_flickering")


@lru_cache
def clips() -> tuple[RenderedClip, ...]:
    return tuple(MovingShapes(difficulty="rich").render(index, "val") for index in range(CLIPS))


def mean_scores(damage: Callable[[Pixels], Pixels], captions: int = 0) -> dict[str, float]:
    """Mean of each dimension over all clips; each clip graded against the caption of the one so many further."""
    graded = [
        grade(parse_scene(damage(clip.frames.astype(np.float32)).astype(np.float32)), other.factors).scores
        for clip, other in zip(clips(), clips()[captions:] + clips()[:captions], strict=True)
    ]
    return {name: float(np.mean([one[name] for one in graded if name in one])) for name in DIMENSIONS}


@lru_cache
def clean() -> dict[str, float]:
    return mean_scores(lambda pixels: pixels)


def test_true_clips_score_at_least_98_percent_in_every_dimension() -> None:
    assert set(clean()) == set(DIMENSIONS)
    assert min(clean().values()) >= 0.98


# For each damage: its levels, the dimensions that must fall steadily with the least fall at the last level, and those
# that must not notice.
DAMAGES: dict[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...], dict[str, float], tuple[str, ...]]] = {
    "noise": (
        noisy,
        (20, 45, 90),
        {
            "object_class": 0.6,
            "color": 0.2,
            "object_count": 0.3,
            "multiple_objects": 0.4,
            "size": 0.05,
            "motion_direction": 0.1,
            "scene": 0.3,
            "camera_motion": 0.5,
            "subject_consistency": 0.5,
            "background_consistency": 0.8,
            "temporal_flickering": 0.6,
        },
        (),
    ),
    "blur": (
        blurred,
        (0.7, 1.5, 3.0),
        {
            "object_class": 0.6,
            "color": 0.4,
            "multiple_objects": 0.5,
            "scene": 0.1,
            "subject_consistency": 0.1,
            "background_consistency": 0.1,
        },
        (),
    ),
    "frozen frames": (
        lambda pixels, level: frozen(pixels, int(level)),
        (2, 4, 7),
        {"motion_direction": 0.4, "speed": 0.9, "occlusion": 0.9, "camera_motion": 0.7},
        ("object_class", "color", "object_count", "size", "scene", *ALWAYS[1:]),
    ),
    "shuffled frames": (
        lambda pixels, level: shuffled(pixels, int(level)),
        (3, 5, 8),
        {"motion_direction": 0.4, "camera_motion": 0.5, "background_consistency": 0.05, "spatial_relationship": 0.02},
        ("object_class", "color", "object_count", "size"),
    ),
    "color shift": (
        recolored,
        (0.1, 0.2, 0.4),
        {"color": 0.5, "scene": 0.1, "multiple_objects": 0.2},
        ("object_class", "object_count", "size", "motion_direction", "speed"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_lowers_what_it_damages(name: str) -> None:
    damage, levels, sensitive, blind = DAMAGES[name]
    found = [clean(), *(mean_scores(lambda pixels, level=level: damage(pixels, level)) for level in levels)]
    for dimension, fall in sensitive.items():
        track = [scores[dimension] for scores in found]
        # 0.02 is less than what half of one clip of 24 makes.
        assert all(after <= before + 0.02 for before, after in pairwise(track)), (dimension, track)
        assert track[0] - track[-1] >= fall, (dimension, track)
    for dimension in blind:
        assert found[0][dimension] - found[-1][dimension] < 0.05, (dimension, found[-1][dimension])


def test_swapped_captions_lower_all_that_captions_name() -> None:
    swapped = mean_scores(lambda pixels: pixels, captions=CLIPS // 2)
    for dimension in set(DIMENSIONS) - set(ALWAYS):
        assert swapped[dimension] < 0.75, (dimension, swapped[dimension])
    for dimension in ALWAYS[2:]:
        assert swapped[dimension] == pytest.approx(clean()[dimension])


TIME = np.linspace(0, 1, 9)
ONES = np.ones(9)


def seen_of(
    shape: str = "square", color: str = "red", pattern: Background | None = None, **tracks: np.ndarray
) -> ParsedScene:
    """What the judge sees of one object with these tracks, on 48 x 48."""
    given = {"x": 0.5 * ONES, "y": 0.5 * ONES, "diameter": 0.3 * ONES, "angle": 0 * ONES} | tracks
    scene = Scene(Canvas(9, 48, 48), (Body(shape, color, **given),), pattern or Background("plain", ("black",)))
    return parse_scene(render_scene(scene).astype(np.float32))


def motions_of(shape: str = "square", **tracks: np.ndarray) -> dict[str, float]:
    seen = seen_of(shape, **tracks)
    scores = {name: motion_score(seen.objects[0], shape, name, seen.canvas) for name in MOTIONS}
    return {name: round(score, 2) for name, score in scores.items() if score > 0}


def test_motions_by_hand() -> None:
    assert motions_of() == {"still": 1.0}
    assert motions_of(x=0.3 + 0.3 * TIME) == {"right": 1.0}
    # At 22.5 degrees two names are equally near, half-way from 15 degrees (1) to 45 (0) in cosine: 0.837.
    middle = motions_of(x=0.3 + 0.3 * np.cos(np.pi / 8) * TIME, y=0.4 + 0.3 * np.sin(np.pi / 8) * TIME)
    assert middle == pytest.approx({"right": 0.837, "lower right": 0.837}, abs=0.06)
    assert motions_of(diameter=0.2 * 2**TIME) == {"growing": 1.0}
    assert motions_of(diameter=0.4 / 2**TIME) == {"shrinking": 1.0}
    assert motions_of(angle=2 * TIME) == {"rotating": 1.0}
    assert motions_of("circle", angle=2 * TIME) == {"still": 1.0}
    # To the wall and back: the left edge of a square of 0.3 is 0.133 from its center.
    assert motions_of(x=0.14 + 0.5 * np.abs(TIME - 0.5)) == {"bouncing": 1.0}
    # The same in the middle of the frame meets no edge.
    assert motions_of(x=0.38 + 0.5 * np.abs(TIME - 0.5)) == {"bouncing": 0.5}


def test_speeds_by_hand() -> None:
    """Slow is a path of 0.22 to 0.25, fast one of 0.42 to 0.45 short sides."""
    slow, fast, neither = (seen_of(x=0.25 + path * TIME).objects[0] for path in (0.23, 0.43, 0.06))
    assert (speed_score(slow, "slow"), speed_score(slow, "fast")) == (1, 0)
    assert (speed_score(fast, "slow"), speed_score(fast, "fast")) == (0, 1)
    assert speed_score(neither, "slow") < 0.5


def factors(shape: str = "square", color: str = "red", motion: str = "still", **other: object) -> Factors:
    clip = MovingShapes().render(0)
    changed = {**vars(clip.factors.objects[0]), "shape": shape, "color": color, "motion": motion}
    names = ("shape", "color", "motion")
    whole = {**vars(clip.factors), "objects": (type(clip.factors.objects[0])(**changed),)}
    return Factors(**whole | {"named": tuple(f"objects.0.{name}" for name in names)} | other)


def test_partly_right_clips_score_partly() -> None:
    right = grade(seen_of(), factors())
    assert right.scores == pytest.approx(dict.fromkeys(right.scores, 1.0), abs=0.01)
    assert right.total == pytest.approx(1.0, abs=0.01)
    assert set(right.scores) == {"object_class", "color", "motion_direction", *ALWAYS}
    other_shape = grade(seen_of("circle"), factors()).scores
    assert other_shape["object_class"] < 0.05 and other_shape["color"] > 0.95
    other_color = grade(seen_of(color="blue"), factors()).scores
    assert other_color["color"] == 0 and other_color["object_class"] > 0.95
    assert other_color["motion_direction"] == 1


def test_a_shapeless_blob_of_the_right_color_has_color_but_no_class() -> None:
    grid = (np.arange(48) + 0.5) / 48 - 0.5
    ragged = np.hypot(grid, grid[:, None]) < 0.2 + 0.09 * np.sin(5 * np.arctan2(grid[:, None], grid) + 1)
    frames = np.where(ragged[None, :, :, None], (225, 25, 35), (10, 10, 12)) * np.ones((9, 1, 1, 1))
    scores = grade(parse_scene(frames.astype(np.float32)), factors()).scores
    assert scores["color"] == 1
    assert scores["object_class"] < 0.5


def test_nothing_on_the_screen_scores_nothing() -> None:
    empty = parse_scene(np.full((8, 32, 32, 3), 10, np.float32))
    scores = grade(empty, factors()).scores
    lost = ("object_class", "color", "motion_direction", "object_count", "subject_consistency")
    assert all(scores[name] == 0 for name in lost)


def test_an_object_that_comes_late_counts_for_its_part() -> None:
    seen = render_scene(Scene(Canvas(8, 48, 48), (still_square(),), Background("plain", ("black",))))
    frames = np.concatenate([np.full((4, 48, 48, 3), (10, 10, 12)), seen[4:]]).astype(np.float32)
    scores = grade(parse_scene(frames), factors()).scores
    for name in ("color", "object_class", "object_count", "subject_consistency"):
        assert scores[name] == pytest.approx(0.5, abs=0.02), name


def still_square() -> Body:
    one = np.ones(8)
    return Body("square", "red", 0.5 * one, 0.5 * one, 0.3 * one, 0 * one)


def test_objects_are_matched_by_looks_not_by_order() -> None:
    clip = next(clip for clip in clips() if len(clip.factors.objects) == 2)
    seen = parse_scene(clip.frames.astype(np.float32)).objects
    first, second = clip.factors.objects
    there: tuple[SeenObject | None, ...] = match(seen, (first, second))
    assert match(seen[::-1], (first, second)) == there
    assert match(seen, (second, first)) == there[::-1]
    assert match((), (first, second)) == (None, None)
    assert None not in there and color_score(there[0], first.color) > 0.9  # type: ignore[arg-type]


def test_scores_of_colors_by_hand() -> None:
    """1 up to a distance of 30, 0 from 80: 55 is half-way."""
    found = np.array([[125, 125, 125], [10 + 55, 10, 12]], np.float32)
    assert background_color_score(found, ("black", "grey")) == pytest.approx(0.75)
    # One color where two are named is at most half right, and two where one is named too.
    assert background_color_score(found[:1], ("grey", "navy")) == pytest.approx(0.5)
    assert background_color_score(found, ("grey",)) == pytest.approx(0.5)
    assert (ramp(5, 0, 10), ramp(5, 10, 0), ramp(-1, 0, 10)) == (0.5, 0.5, 0.0)
