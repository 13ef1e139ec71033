"""Rendered solids before the cameras of Zero123++, and renders of Objaverse read from pictures."""

import json
import math
from random import Random

import numpy as np
import pytest
from PIL import Image

from vidlab.data.multiview.cameras import DISTANCE, SIX_VIEWS, Camera, rays
from vidlab.data.multiview.objaverse import ObjaverseViews
from vidlab.data.multiview.objects import KINDS, Part, SolidObject, draw_object
from vidlab.data.multiview.solids import AMBIENT, bipyramid, prism, pyramid, seen
from vidlab.data.multiview.source import MultiviewSolids
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import DataError, UserError

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
SIDEWAYS = np.array([1.0, 0.0, 0.0])


def test_the_six_views_of_zero123plus():
    assert [(view.azimuth, view.elevation) for view in SIX_VIEWS] == [
        (30, 20), (90, -10), (150, 20), (210, -10), (270, 20), (330, -10),
    ]  # fmt: skip


def test_rays_look_at_the_origin_and_span_the_field_of_view():
    start, directions = rays(Camera(90.0, 0.0), 3, 3, 1)
    assert start == pytest.approx([0, DISTANCE, 0])
    assert directions[1, 1, 0] == pytest.approx([0, -1, 0], abs=1e-12)
    left, top = directions[1, 0, 0], directions[0, 1, 0]
    # middles of the outer pixels: two thirds of the half width tan(15 degrees); from azimuth 90, left is +x
    assert left == pytest.approx([math.tan(math.radians(15)) * 2 / 3, -1, 0])
    assert top == pytest.approx([0, -1, math.tan(math.radians(15)) * 2 / 3])


def test_what_a_ray_sees_by_hand():
    cube = prism(4, math.sqrt(2), 2.0, [RED, GREEN], BLUE).turned(-math.pi / 4).moved((0, 0, -1))  # [-1, 1]^3
    towards = np.array([[-1.0, 0, 0], [-1.0, 0.3, 0], [-1.0, 0.9, 0]])
    found = seen([cube], np.array([4.0, 0, 0]), towards, SIDEWAYS)
    assert found[0] == pytest.approx(RED), "the face x = 1, full in the light"
    assert found[1] == pytest.approx(RED)
    assert found[2] == pytest.approx([255, 255, 255]), "beside it: y = 2.7 at x = 1"
    behind = seen([cube], np.array([0.0, 0, 4]), np.array([[0.0, 0, -1]]), SIDEWAYS)
    assert behind[0] == pytest.approx([0, 0, 200 * AMBIENT]), "the top, which the light only grazes"


def test_the_nearer_of_two_solids_is_seen():
    far = prism(4, 1.0, 2.0, [RED], RED).moved((0, 0, -1))
    near = pyramid(4, 0.5, 2.0, [GREEN], GREEN).moved((2, 0, -1))
    start, towards = np.array([4.0, 0, 0]), np.array([[-1.0, 0, 0], [-1.0, 0.2, 0]])
    found = seen([far, near], start, towards, SIDEWAYS)
    assert found[0, 0] == 0 and found[0, 1] > 0, "the pyramid's side"
    assert found[1, 0] > 0 and found[1, 1] == 0, "the prism beside the pyramid"
    assert np.array_equal(found, seen([near, far], start, towards, SIDEWAYS))


@pytest.mark.parametrize("solid", [prism(6, 1, 2, [RED], RED), pyramid(3, 1, 2, [RED], RED), bipyramid(4, 1, 2, [RED])])
def test_faces_point_outwards_and_hold_the_middle(solid):
    assert np.linalg.norm(solid.normals, axis=1) == pytest.approx(np.ones(len(solid.normals)))
    assert ((solid.normals * [0, 0, 0.5]).sum(1) < solid.offsets).all()


def test_objects_stay_in_the_picture_and_all_solids_occur():
    objects = [draw_object(Random(seed)) for seed in range(200)]
    for one in objects:
        height = sum(part.height for part in one.parts)
        assert all(math.hypot(part.radius, height / 2) <= 1 for part in one.parts)
    assert {part.kind for one in objects for part in one.parts} == set(KINDS)


def test_an_object_turned_by_a_camera_step_shows_the_next_view():
    parts = (Part("cube", ("red", "blue", "cyan"), 0.7, 1.0),)
    views = SolidObject(parts, 0.2).views(0.0, 16, 16)
    # light does not turn with the object: only what is object and what is background can be compared
    ahead = SolidObject(parts, 0.2 + math.radians(120)).views(0.0, 16, 16)
    assert np.array_equal((views[1] < 255).any(-1), (ahead[3] < 255).any(-1)), "azimuth 30 before, 150 after"
    assert SolidObject(parts, 0.0).caption == "a red and blue cube"
    assert Part("cone", ("orange", "red", "blue"), 0.5, 1.0).words == "an orange and red cone"


def test_solids_are_rendered_once_and_are_the_same_each_time(tmp_path):
    source = MultiviewSolids(16, 16, train_clips=2, val_clips=1, cache_dir=tmp_path)
    index = ClipIndex.open(source.prepare())
    assert [index.row(n).split for n in range(3)] == ["train", "train", "val"]
    assert index.row(0).frames == 7 and index.row(0).captions == (source.render(0)[1],)
    assert not np.array_equal(source.render(0)[0], source.render(0, "val")[0])
    with pytest.raises(UserError, match=r"data\.height=8: must be at least 16"):
        MultiviewSolids(8, 16)


@pytest.fixture
def renders(tmp_path):
    """Three objects as Objaverse is rendered for Zero123++, of the second one view is missing."""
    for number, uid in enumerate(("aa", "bb", "cc")):
        folder = tmp_path / "in" / "rendering_zero123plus" / uid
        folder.mkdir(parents=True)
        for view in range(7):
            if (uid, view) != ("bb", 3):
                pixels = np.full((16, 16, 4), 40 * number + view, np.uint8)
                pixels[..., 3] = 255
                pixels[:4, :, 3] = 0
                Image.fromarray(pixels).save(folder / f"{view:03d}.png")
    return tmp_path


def test_renders_of_objaverse(renders, caplog):
    source = ObjaverseViews(str(renders / "in"), cache_dir=str(renders / "cache"))
    index = ClipIndex.open(source.prepare())
    rows = {index.row(n).key: index.row(n) for n in range(len(index))}
    assert {row.captions for row in rows.values()} == {("an object",)}
    assert set(rows) == {"aa", "cc"} and {row.split for row in rows.values()} == {"train", "val"}
    assert "bb left out" in caplog.text and "003.png: no such file" in caplog.text
    assert rows["aa"].frames == 7 and (rows["aa"].height, rows["aa"].width) == (16, 16)
    views = source._views(renders / "in" / "rendering_zero123plus" / "cc")
    assert views[5, 0, 0].tolist() == [255, 255, 255], "transparent parts over white"
    assert views[5, 8, 8].tolist() == [85, 85, 85]
    assert source.prepare().exists()


def test_lists_of_objaverse(renders):
    listed = renders / "in" / "valid_paths.json"
    source = ObjaverseViews(str(renders / "in"), cache_dir=str(renders / "cache"))
    listed.write_text(json.dumps(["cc", "aa"]))
    assert source._captions(renders / "in" / "rendering_zero123plus") == {"aa": "an object", "cc": "an object"}
    listed.write_text(json.dumps({"armchair": ["cc"], "race_car": ["aa"]}))
    assert source._captions(renders / "in" / "rendering_zero123plus") == {"aa": "race car", "cc": "armchair"}
    listed.write_text(json.dumps(["../../../etc"]))
    with pytest.raises(DataError, match="which is no folder below"):
        source.prepare()
    listed.unlink()
    with pytest.raises(UserError, match=r"data\.path is not set: give the folder of objaverse_views"):
        ObjaverseViews(None).prepare()


def test_objects_that_no_split_has_are_refused():
    source = MultiviewSolids(16, 16)
    with pytest.raises(UserError, match="split=test: multiview_solids has train and val"):
        source.render(0, "test")
    with pytest.raises(IndexError, match="outside"):
        source.render(1 << 40)  # would be the first of val
