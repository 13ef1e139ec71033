"""What the judge of moving shapes sees: every factor of a clip is read back from its pixels."""

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from shape_reading import ObjectReading, read, read_object
from shapes_damage import noisy

from vidlab.data.moving_shapes import MovingShapes, RenderedClip
from vidlab.data.moving_shapes.render import render_scene
from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    CAMERAS,
    COLORS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SIZES,
    Background,
    Body,
    Canvas,
    Scene,
)
from vidlab.factors import ObjectFactors
from vidlab.metrics.shapes.grade import match
from vidlab.metrics.shapes.masks import eroded, moments, parts, widened
from vidlab.metrics.shapes.parse import parse_scene
from vidlab.metrics.shapes.parsed_scene import ParsedScene
from vidlab.metrics.shapes.patterns import Measured, fit_patterns

CLIPS = {"plain": 80, "rich": 90}


@lru_cache
def seen_clips(difficulty: str) -> list[tuple[RenderedClip, ParsedScene]]:
    shapes = MovingShapes(difficulty=difficulty)
    clips = [shapes.render(index, "val") for index in range(CLIPS[difficulty])]
    return [(clip, parse_scene(clip.frames.astype(np.float32))) for clip in clips]


def wrong_names(wanted: ObjectFactors, got: ObjectReading) -> list[str]:
    names = [name for name in ("shape", "color", "size", "motion", "speed") if getattr(wanted, name)]
    names += ["position"] if wanted.position else []
    return [f"{n}: {getattr(wanted, n)} as {getattr(got, n)}" for n in names if getattr(wanted, n) != getattr(got, n)]


@pytest.mark.parametrize("difficulty", ["plain", "rich"])
def test_every_factor_is_read_from_the_pixels_of_held_out_clips(difficulty: str) -> None:
    wrong: Counter[str] = Counter()
    checked: Counter[str] = Counter()
    for clip, seen in seen_clips(difficulty):
        factors, names = clip.factors, read(seen)
        assert (seen.counts == len(factors.objects)).all(), clip.caption
        for wanted, found in zip(factors.objects, match(seen.objects, factors.objects), strict=True):
            wrong.update(wrong_names(wanted, read_object(found, seen.canvas)))
            checked.update([wanted.shape, wanted.color, wanted.motion, wanted.size, wanted.position])
        wrong[f"background {names.background}"] += names.background != factors.background
        wrong["background colors"] += set(names.background_colors) != set(factors.background_colors)
        wrong[f"camera {names.camera}"] += names.camera != factors.camera
        checked.update([factors.background, factors.camera, *factors.background_colors])
    assert +wrong == Counter()
    assert all(checked[name] for name in (*SHAPES, *COLORS, *MOTIONS, *SIZES, *BACKGROUND_COLORS))
    if difficulty == "rich":
        assert all(checked[name] for name in (*PATTERNS, *CAMERAS))


@pytest.mark.parametrize("difficulty", ["plain", "rich"])
def test_tracks_are_right_to_a_fraction_of_a_pixel(difficulty: str) -> None:
    """Half a pixel for every center in every frame, hidden or not, and a tenth of a pixel for most."""
    errors = []
    for clip, seen in seen_clips(difficulty):
        for wanted, found in zip(clip.factors.objects, match(seen.objects, clip.factors.objects), strict=True):
            assert found is not None
            away = np.hypot(found.x - np.array(wanted.x), found.y - np.array(wanted.y)) * 32
            assert away.max() < 0.5, clip.caption
            assert np.abs(found.diameter / np.array(wanted.diameter) - 1).max() < 0.1, clip.caption
            errors.append(away.mean())
    assert np.median(errors) < 0.1


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 24, 24), (5, 64, 32), (16, 64, 64), (9, 32, 96)])
def test_any_size_and_length(frames: int, height: int, width: int) -> None:
    shapes = MovingShapes(frames=frames, height=height, width=width, difficulty="rich")
    right = []
    for index in range(12):
        clip = shapes.render(index, "val")
        names = read(parse_scene(clip.frames.astype(np.float32)))
        wanted = clip.factors
        right.append({(o.shape, o.color) for o in names.objects} == {(o.shape, o.color) for o in wanted.objects})
        right.append((names.background, names.camera) == (wanted.background, wanted.camera))
    assert np.mean(right) > 0.9


def test_half_a_turn_of_a_square_is_measured() -> None:
    """0.25 radians in each of 8 steps, which is 2 radians; the square repeats every pi / 2."""
    canvas = Canvas(9, 48, 48)
    still = np.ones(9)
    body = Body("square", "cyan", 0.5 * still, 0.4 * still, 0.4 * still, 0.25 * np.arange(9))
    seen = parse_scene(render_scene(Scene(canvas, (body,), Background("plain", ("black",)))).astype(np.float32))
    assert seen.objects[0].turns[4][-1] == pytest.approx(2.0, abs=0.05)
    assert read(seen).objects[0].motion == "rotating"
    # Against the clock.
    body = Body("triangle", "cyan", 0.5 * still, 0.5 * still, 0.4 * still, -0.25 * np.arange(9))
    seen = parse_scene(render_scene(Scene(canvas, (body,), Background("plain", ("black",)))).astype(np.float32))
    assert seen.objects[0].turns[3][-1] == pytest.approx(-2.0, abs=0.05)


def test_stripes_are_fitted_by_hand() -> None:
    """Stripes of 6 pixels that move 1 pixel to the left per frame: 7 pixels of 32 in 8 frames, about half a pan."""
    columns = (np.arange(32) + np.arange(8)[:, None]) // 6 % 2 * 2.0 - 1
    texture = np.repeat(columns[:, None], 32, axis=1).astype(np.float32)
    best = fit_patterns(Measured(texture, np.ones_like(texture), Canvas(8, 32, 32))).best
    assert (best.pattern, best.camera.name, best.camera.strength) == ("striped", "pan right", 0.5)
    assert best.across is not None and best.across.tile * 32 == pytest.approx(6, abs=0.15)


def test_a_blank_clip_and_noise_show_nothing() -> None:
    blank = parse_scene(np.full((8, 32, 32, 3), 10, np.float32))
    assert blank.objects == () and blank.counts.sum() == 0 and blank.flicker == 0
    assert str(read(blank)) == "no object; plain black; camera fixed"
    noise = parse_scene(np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32))
    assert all(max(found.shapes.values()) < 0.1 for found in noise.objects)


def test_two_of_a_color_are_two() -> None:
    canvas, still = Canvas(6, 32, 32), np.ones(6)
    bodies = tuple(Body("circle", "red", x * still, 0.5 * still, 0.25 * still, 0 * still) for x in (0.2, 0.8))
    seen = parse_scene(render_scene(Scene(canvas, bodies, Background("plain", ("navy",)))).astype(np.float32))
    assert seen.counts.tolist() == [2.0] * 6


def test_masks_by_hand() -> None:
    mask = np.zeros((1, 5, 6), bool)
    mask[0, 1:4, 1:4] = True
    mask[0, 0, 5] = True
    assert eroded(mask).sum() == 1 and eroded(mask)[0, 2, 2]
    assert widened(mask[:, :, :4]).sum() == 20
    assert len(np.unique(parts(mask))) == 3
    diagonal = np.eye(6, dtype=bool)[None]
    assert len(np.unique(parts(diagonal))) == 2
    area, x, y = moments(mask[:, :, :4].astype(np.float32))
    assert (area[0], x[0], y[0]) == (9.0, 2.5, 2.5)


def test_noise_moves_tracks_little() -> None:
    """20 gray levels of noise on each channel leave centers right to half a pixel."""
    for clip, seen in seen_clips("plain")[:12]:
        again = parse_scene(noisy(clip.frames, 20).astype(np.float32))
        assert len(again.objects) == 1
        away = np.hypot(again.objects[0].x - seen.objects[0].x, again.objects[0].y - seen.objects[0].y)
        assert away.max() * 32 < 0.5
