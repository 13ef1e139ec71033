"""The moving-shapes data set: names, drawing, wording, determinism, and the shards on disk."""

import math
import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.captions import with_article, write_caption
from vidlab.data.moving_shapes.factors import carried, motion_seen, position_seen, relation_seen, size_seen
from vidlab.data.moving_shapes.render import coverage, render_scene
from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    MOTIONS,
    PAN,
    SHAPES,
    SIZES,
    TILE,
    Background,
    Body,
    Canvas,
    Scene,
)
from vidlab.data.moving_shapes.source import LEAST_FRAMES
from vidlab.data.moving_shapes.words import CAMERA_ON, CAMERA_PAN, CAMERA_ZOOM, SIZE_WORDS
from vidlab.errors import UserError


def test_plain_has_nothing_of_rich() -> None:
    shapes = MovingShapes()
    for index in range(300):
        factors = shapes.render(index).factors
        assert (factors.background, factors.camera, factors.occlusion) == ("plain", "fixed", False)
        assert len(factors.objects) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_apart_at_the_smallest_size(shape: str) -> None:
    """Matched against all four shapes at the measured center, the right one fits by far best."""
    canvas = Canvas(1, 32, 32)
    rng = Random(0)
    for _ in range(100):
        place = [np.array([0.5 + rng.uniform(0, 1 / 32)]) for _ in range(2)]
        one, none = np.array([SIZES["small"] * 0.98]), np.zeros(1)
        drawn = coverage(Body(shape, "red", *place, one, none), canvas)
        x, y = ((drawn * grid).sum() / drawn.sum() for grid in np.meshgrid(*[(np.arange(32) + 0.5) / 32] * 2))
        fits = {
            name: np.abs(drawn - coverage(Body(name, "red", np.array([x]), np.array([y]), one, none), canvas)).sum()
            for name in SHAPES
        }
        best, second = sorted(fits, key=lambda name: fits[name])[:2]
        assert best == shape
        assert fits[second] > 3 * fits[best]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1])
def test_every_shape_has_the_area_of_its_disc(shape: str, angle: float) -> None:
    """The diameter is that of the disc of equal area: pi / 4 * (0.4 * 64)^2 = 514.72 pixels."""
    canvas = Canvas(2, 64, 80)
    body = Body(shape, "red", *(np.array([0.6, 0.5]) for _ in range(2)), np.full(2, 0.4), np.full(2, angle))
    assert coverage(body, canvas).sum((1, 2)) == pytest.approx([514.72] * 2, rel=0.02)


def test_square_is_drawn_where_it_is_said_to_be() -> None:
    """A side of 8 is a disc diameter of 16 / sqrt(pi); centered at (10, 20) it fills [6, 14) x [16, 24)."""
    diameter = np.array([8 * 2 / math.sqrt(math.pi) / 32])
    body = Body("square", "red", np.array([10 / 32]), np.array([20 / 32]), diameter, np.zeros(1))
    expected = np.zeros((1, 32, 32))
    expected[:, 16:24, 6:14] = 1
    np.testing.assert_array_equal(coverage(body, Canvas(1, 32, 32)), expected)


def test_an_object_half_outside_is_cut_at_the_edge() -> None:
    body = Body("circle", "red", np.zeros(1), np.array([0.5]), np.array([0.5]), np.zeros(1))
    alpha = coverage(body, Canvas(1, 32, 32))
    assert alpha.sum() == pytest.approx(math.pi / 8 * 16**2, rel=0.02)
    assert alpha[:, :, 9:].sum() == 0


def test_a_pan_to_the_right_shifts_the_background_to_the_left() -> None:
    """On 50 pixels a pan of 0.36 is 18: 2 pixels in each of 9 steps, over tiles of 10 pixels."""
    background = Background("striped", ("black", "grey"), tile=0.2)
    frames = render_scene(Scene(Canvas(10, 50, 50), (), background, "pan right"))
    black, grey = BACKGROUND_COLORS["black"], BACKGROUND_COLORS["grey"]
    for frame in range(10):
        columns = (np.arange(50) + 2 * frame) // 10 % 2
        expected = np.where(columns[:, None] == 0, black, grey)
        np.testing.assert_array_equal(frames[frame], np.broadcast_to(expected, (50, 50, 3)))


def test_a_zoom_in_magnifies_about_the_middle() -> None:
    """Tile borders at 10 and 22 of 32 pixels, that is -6 and 6 from the middle, end at -9.6 and 9.6."""
    background = Background("striped", ("black", "grey"), tile=12 / 32, phase=(2 / 12, 0.0))
    frames = render_scene(Scene(Canvas(4, 32, 32), (), background, "zoom in"))
    bright = (frames[:, 0, :, 0] - 10.0) / 115
    assert bright[0].tolist() == [0.0] * 10 + [1.0] * 12 + [0.0] * 10
    assert bright[3, 7:25].tolist() == [1.0] * 18
    assert bright[3].sum() == pytest.approx(19.2, abs=0.4)


TIME = np.linspace(0, 1, 8)
ONES, ZEROS = np.ones(8), np.zeros(8)


def seen(x=ZEROS, y=ZEROS, diameter=ONES, angle=ZEROS, shape="square") -> str:
    return motion_seen(x, y, diameter, angle, shape)


def test_motion_is_what_happens_on_screen() -> None:
    assert seen() == "still"
    assert seen(x=0.2 * TIME) == "right"
    assert seen(x=-0.2 * TIME, y=-0.2 * TIME) == "upper left"
    assert seen(x=0.2 * TIME, y=0.08 * TIME) == ""  # 22 degrees: between two names
    assert seen(x=0.08 * TIME) == ""  # neither here nor there
    assert seen(y=np.abs(TIME - 0.5)) == "bouncing"
    assert seen(diameter=1 + TIME) == "growing"
    assert seen(diameter=2 - TIME) == "shrinking"
    assert seen(diameter=1 + 0.2 * TIME) == ""
    assert seen(angle=2 * TIME) == "rotating"
    assert seen(angle=0.5 * TIME) == ""


def test_what_cannot_be_seen_has_no_name() -> None:
    assert seen(angle=2 * TIME, shape="circle") == "still"
    # Moving right at 0.36 under a camera that pans right by 0.36 leaves the object where it was.
    assert seen(x=0.36 * TIME - 0.36 * TIME) == "still"
    # At rest under the same pan, it moves left on screen, carried by the camera.
    assert seen(x=-0.36 * TIME) == "left"
    assert carried("left", "pan right")
    assert not carried("right", "pan right")
    # Less than a pixel of growth at 32 x 32: from 8 to 8.4 pixels.
    assert seen(diameter=0.25 + 0.0125 * TIME) == "still"


def test_other_names() -> None:
    assert size_seen(np.full(8, 0.24)) == "small"
    assert size_seen(0.2 + 0.2 * TIME) == "varying"
    assert position_seen(np.full(8, 0.2), np.full(8, 0.5)) == "left"
    assert position_seen(np.full(8, 0.5), np.full(8, 0.5)) == "centre"
    assert position_seen(np.full(8, 0.5), np.full(8, 0.9)) == "bottom"
    assert position_seen(np.full(8, 0.9), np.full(8, 0.1)) == "upper right"
    assert position_seen(np.full(8, 0.4), np.full(8, 0.5)) == ""
    names = relation_seen(np.array([0.2, 0.6]), np.array([0.5, 0.1]), np.array([0.6, 0.5]), np.array([0.5, 0.6]))
    assert names == ("left of", "above")
    assert relation_seen(np.zeros(1), np.zeros(1), np.array([0.3]), np.array([0.3])) == ("",)


def test_clips_depend_on_seed_and_index_alone() -> None:
    one, same, other = MovingShapes(difficulty="rich"), MovingShapes(difficulty="rich"), MovingShapes(seed=1)
    backwards = {index: same.render(index) for index in reversed(range(20))}
    for index in range(20):
        clip = one.render(index)
        np.testing.assert_array_equal(clip.frames, backwards[index].frames)
        assert (clip.caption, clip.factors) == (backwards[index].caption, backwards[index].factors)
    assert sum(MovingShapes().render(i).factors == other.render(i).factors for i in range(20)) == 0


def test_held_out_clips_are_never_trained_on() -> None:
    shapes = MovingShapes()
    train = {shapes.render(index, "train").frames.tobytes() for index in range(1000)}
    val = {shapes.render(index, "val").frames.tobytes() for index in range(256)}
    assert len(train) == 1000
    assert len(val) == 256
    assert not train & val


def test_a_pan_stays_below_the_aliasing_limit() -> None:
    """Half a period is one tile: a pattern moved by less per frame shows its direction."""
    assert TILE[0] > PAN / (LEAST_FRAMES - 1)


@pytest.mark.parametrize("difficulty", ["plain", "rich"])
@pytest.mark.parametrize(("frames", "height", "width"), [(4, 16, 16), (5, 24, 48), (17, 64, 32), (16, 64, 64)])
def test_any_size_and_length(difficulty: str, frames: int, height: int, width: int) -> None:
    shapes = MovingShapes(frames=frames, height=height, width=width, difficulty=difficulty)
    for index in range(60):
        clip = shapes.render(index)
        assert clip.frames.shape == (frames, height, width, 3)
        assert clip.frames.dtype == np.uint8
        for body in clip.factors.objects:
            assert len(body.x) == len(body.y) == len(body.diameter) == len(body.angle) == frames
            assert min(body.x) > 0 and max(body.x) < 1 and min(body.y) > 0 and max(body.y) < 1
            assert body.motion in MOTIONS


def test_objects_stay_inside_the_frame() -> None:
    """On a frame of three times the size around it, no more of an object is seen."""
    shapes = MovingShapes(difficulty="rich")
    for index in range(300):
        for seen in shapes.render(index).factors.objects:
            x, y, diameter, angle = (np.array(track) for track in (seen.x, seen.y, seen.diameter, seen.angle))
            inside = coverage(Body(seen.shape, seen.color, x, y, diameter, angle), Canvas(8, 32, 32))
            wider = Body(seen.shape, seen.color, (x + 1) / 3, (y + 1) / 3, diameter / 3, angle)
            whole = coverage(wider, Canvas(8, 96, 96))
            np.testing.assert_allclose(inside.sum((1, 2)), whole.sum((1, 2)), atol=0.5)


def factors_of(difficulty: str, **wanted: str):
    """The factors of the first clip whose first object is as wanted."""
    shapes = MovingShapes(difficulty=difficulty)
    for index in range(5000):
        factors = shapes.render(index).factors
        if all(getattr(factors.objects[0], name) == value for name, value in wanted.items()):
            return factors
    raise AssertionError(wanted)


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_has_many_wordings(motion: str) -> None:
    """With shape, color, speed and background fixed, at least 12 wordings of the same motion."""
    factors = factors_of("plain", motion=motion)
    alone = replace(factors.objects[0], size="varying", position="", shape="cross")
    captions = [write_caption(Random(i), replace(factors, objects=(alone,))) for i in range(1400)]
    bare = {
        caption.text
        for caption in captions
        if "objects.0.motion" in caption.named
        and not {"background", "objects.0.speed"} & set(caption.named)
        and caption.text.startswith(f"{with_article(alone.color)} cross")
    }
    assert len(bare) >= 12


@pytest.mark.parametrize("difficulty", ["plain", "rich"])
def test_named_lists_exactly_what_the_words_say(difficulty: str) -> None:
    shapes = MovingShapes(difficulty=difficulty)
    sizes = {word for words in SIZE_WORDS.values() for word in words}
    cameras = {word for table in (CAMERA_ON, CAMERA_ZOOM) for words in table.values() for word in words}
    cameras |= {wording.format("").strip() for wording in CAMERA_PAN}
    for index in range(1000):
        clip = shapes.render(index)
        text, named = clip.caption, clip.factors.named
        assert len(set(named)) == len(named)
        assert sum(text.replace(",", "").split().count(word) for word in sizes) == sum(
            name.endswith(".size") for name in named
        )
        assert any(wording in text for wording in cameras) == ("camera" in named)
        for name in named:
            first, *rest = name.split(".")
            value = getattr(clip.factors.objects[int(rest[0])], rest[1]) if rest else getattr(clip.factors, first)
            assert value not in ("", "none", "varying", "fixed", False)
        assert text == text.strip() and "  " not in text and " ," not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_articles() -> None:
    assert with_article("orange disc") == "an orange disc"
    assert with_article("blue disc") == "a blue disc"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"difficulty": "hard"}, "data.difficulty=hard"),
        ({"frames": 1}, "data.frames=1"),
        ({"height": 8}, "data.height=8"),
        ({"width": 15}, "data.width=15"),
        ({"height": 16, "width": 128}, "data.width=128"),
        ({"train_clips": 0}, "data.source.train_clips=0"),
        ({"fps": 0}, "data.source.fps=0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        MovingShapes(**settings)


def test_prepare_writes_what_render_shows(tmp_path) -> None:
    from vidlab.data.storage.index import ClipIndex
    from vidlab.data.storage.shards import read_member
    from vidlab.data.video import read_frames

    shapes = MovingShapes(difficulty="rich", train_clips=6, val_clips=3, cache_dir=tmp_path)
    folder = shapes.prepare()
    index = ClipIndex.open(folder)
    assert len(index) == 9
    for split, count in (("train", 6), ("val", 3)):
        part = index.select(split)
        assert len(part) == count
        for number in range(count):
            row, clip = part.row(number), shapes.render(number, split)
            frames = read_frames(read_member(folder, row.shard, row.offset, row.size))
            np.testing.assert_array_equal(frames, clip.frames)
            assert row.captions == (clip.caption,)
            assert row.factors == clip.factors
    written = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert shapes.prepare() == folder
    assert written == sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())


def test_every_setting_that_changes_a_clip_has_its_own_folder(tmp_path) -> None:
    base = MovingShapes(cache_dir=tmp_path)
    others = [
        replace(base, **change)
        for change in (
            {"frames": 9},
            {"height": 48},
            {"width": 48},
            {"fps": 4},
            {"seed": 1},
            {"val_clips": 9},
        )
    ]
    others.append(replace(base, difficulty="rich"))
    assert len({shapes.folder for shapes in (base, *others)}) == len(others) + 1
    assert replace(base, cache_dir=tmp_path / "elsewhere").folder.name == base.folder.name
