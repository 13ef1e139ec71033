"""Structure signals: what is told of clips, and how closely it is followed."""

import json

import numpy as np
import pytest
import torch

from vidlab.autoencoders.identity import Identity
from vidlab.clip import LatentShape, Stride
from vidlab.conditioning.base import NoConditioning, TrainingClips
from vidlab.conditioning.structure import learned
from vidlab.conditioning.structure.canny import Canny
from vidlab.conditioning.structure.conditioning import StructureConditioning
from vidlab.conditioning.structure.learned import MonocularDepth
from vidlab.conditioning.structure.signals import GivenSignal, SourceClips
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.signals import ShapeEdges, ShapeMasks, outlines, owners
from vidlab.errors import UserError
from vidlab.metrics.structure.depth_error import DepthError, depth_error
from vidlab.metrics.structure.edge_f1 import EdgeF1, edge_f1, near
from vidlab.pipelines.structure_input import StructureInput
from vidlab.randomness import KeyedRNG

KEYS = tuple(f"clip-{number}" for number in range(400))


def square(size=16, low=4, high=12, frames=1):
    clip = torch.full((1, 3, frames, size, size), -1.0)
    clip[..., low:high, low:high] = 1.0
    return clip


def conditioning(**given) -> StructureConditioning:
    return StructureConditioning({"canny": Canny(), "given": GivenSignal()}, controller=dict, **given)


def test_canny_finds_the_outline_of_a_square():
    edges = Canny().extract(SourceClips(square(frames=2)))
    assert edges.shape == (1, 1, 2, 16, 16) and set(edges.unique().tolist()) == {0.0, 1.0}
    rows, columns = edges[0, 0, 0].nonzero().unbind(1)
    assert {rows.min().item(), columns.min().item()} <= {3, 4} and {rows.max().item(), columns.max().item()} <= {11, 12}
    assert not edges[..., 6:10, 6:10].any() and not Canny().extract(SourceClips(torch.zeros(1, 3, 1, 16, 16))).any()
    with pytest.raises(UserError, match="low <= high"):
        Canny(low=200, high=100)


def test_brightness_by_hand():
    pixels = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1, 1)  # red 1, green 0, blue 1/2
    assert GivenSignal().extract(SourceClips(pixels)).item() == pytest.approx(0.299 + 0.114 / 2)


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        ({"model_type": "dpt"}, None, "has no preprocessor_config.json"),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, {}, "distances in meters"),
        ({"model_type": "zoedepth"}, {}, "distances in meters"),
    ],
)
def test_depth_models_that_tell_no_nearness_are_refused(tmp_path, config, processor, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match=message):
        MonocularDepth(str(tmp_path)).extract(SourceClips(square()))


def test_nearness_is_scaled_over_a_whole_clip(monkeypatch):
    """Of two frames that answer -2 to 2 and 0 to 6 the least is 0 and the greatest 1, whatever the frame."""
    answers = torch.tensor([[-2.0, 2.0], [0.0, 6.0]]).view(2, 1, 1, 2)
    monkeypatch.setattr(learned, "_depth", lambda path, device: lambda images: answers)
    found = MonocularDepth("some").extract(SourceClips(torch.zeros(1, 3, 2, 1, 2)))
    assert torch.equal(found.flatten(), torch.tensor([0.0, 0.5, 0.25, 1.0]))


def test_outlines_by_hand():
    covered = np.zeros((2, 1, 5, 5))
    covered[0, 0, 1:4, 1:4] = 1  # a square of 3 x 3 whose middle is no edge
    covered[1, 0, 4, 4] = 0.5  # one pixel in the corner
    owner = owners(covered)
    assert owner[0, 2, 2] == 1 and owner[0, 4, 4] == 2
    expected = covered.max(0) > 0
    expected[0, 2, 2] = False
    assert np.array_equal(outlines(owner), expected)
    whole = np.ones((1, 4, 4), dtype=int)
    assert not outlines(whole).any()  # the border of the frame is no edge


def test_signals_of_rendered_clips_are_where_their_objects_are():
    source = MovingShapes()
    clips = [source.render(number, "val") for number in range(4)]
    pixels = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3) / 127.5 - 1
    told = SourceClips(pixels, [clip.factors for clip in clips])
    masks, edges = ShapeMasks().extract(told), ShapeEdges().extract(told)
    assert masks.shape == edges.shape == (4, 1, 8, 32, 32)
    background = pixels[:, :, :1, :1, :1]  # plain, and no object reaches the corner of the first frame
    differs = (pixels - background).abs().amax(1, keepdim=True) > 0.02
    assert ((masks > 0.1) == differs).float().mean() > 0.99
    assert (edges <= (masks >= 0.5)).all() and edges.flatten(1).sum(1).min() > 20
    assert edge_f1(Canny().extract(told) > 0, edges > 0).min() > 0.8
    with pytest.raises(UserError, match="only data=moving_shapes has"):
        ShapeEdges().extract(SourceClips(pixels))


def test_frames_are_given_as_often_as_asked():
    told = conditioning(given={"all": 0.5, "some": 0.25, "first": 0.125, "none": 0.125})
    frames = told.drawn_frames("canny", 8, KeyedRNG(0, KEYS, (0,) * len(KEYS)))
    assert frames.shape == (len(KEYS), 8) and frames.dtype == torch.bool
    counts = frames.sum(1)
    first = (counts == 1) & frames[:, 0]
    assert (counts == 8).float().mean() == pytest.approx(0.5 + 0.25 / 9, abs=0.08)  # a rate is uniform, so is a count
    assert (counts == 0).float().mean() == pytest.approx(0.125 + 0.25 / 9, abs=0.06)
    assert first.float().mean() == pytest.approx(0.125 + 0.25 / 72, abs=0.06)
    everything = conditioning(given={"all": 1.0}).drawn_frames("canny", 8, KeyedRNG(0, KEYS, (0,) * len(KEYS)))
    assert everything.all()


def test_maps_hold_each_signal_and_where_it_is_given():
    told, clip = conditioning(), square(frames=3)
    assert told.channels == 4
    frames = torch.tensor([[True, False, True]])
    maps = told.signal(SourceClips(clip), {"canny": frames}).maps
    assert maps.shape == (1, 4, 3, 16, 16)
    assert torch.equal(maps[:, 0], Canny().extract(SourceClips(clip))[:, 0] * frames[..., None, None])
    assert torch.equal(maps[:, 1], frames[..., None, None].float().expand(1, 3, 16, 16))
    assert not maps[:, 2:].any()  # what is not given at all
    x0 = torch.zeros(1, 2, 3, 4, 4)
    drawn = told.for_training(TrainingClips(clip, x0, KeyedRNG(0, ("a",), (0,)), 0), Identity())
    assert drawn.structure.maps.shape == maps.shape and drawn.known is None
    assert told.control_channels(LatentShape(3, 3, 4, 4), Stride(1, 4, 4)) == ()


def test_what_cannot_be_told_is_refused():
    with pytest.raises(UserError, match="structure=canny"):
        StructureConditioning({}, controller=dict)
    with pytest.raises(UserError, match="name all signals at once"):
        conditioning(frames=conditioning())
    with pytest.raises(UserError, match="shares of all, some, first, none"):
        conditioning(given={"last": 1.0})
    for settings in ({"strength": 1000.0}, {"interval": (0.5, 0.2)}, {"interval": (0.0, 2.0)}):
        with pytest.raises(UserError, match=f"structure.{next(iter(settings))}"):
            StructureInput("clip.mp4", **settings)
    with pytest.raises(UserError, match="trained without structure control"):
        StructureInput(square()[0]).signal(NoConditioning(), (1, 16, 16))


def test_a_user_gives_a_video_a_picture_or_some_frames():
    told, clip = conditioning(), square(frames=3)[0]
    whole = StructureInput(clip, strength=0.5, interval=(0.25, 1.0)).signal(told, (3, 16, 16))
    assert (whole.strength, whole.interval) == (0.5, (0.25, 1.0)) and whole.maps[:, 1].all() and whole.maps[:, 3].all()
    one = StructureInput(clip, {"canny": Canny()}, frames=[2]).signal(told, (3, 16, 16)).maps
    assert one[0, 1, :, 0, 0].tolist() == [0, 0, 1] and not one[:, 2:].any() and one[:, 0, 2].any()
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[4:12, 4:12] = 255
    shown = StructureInput(picture).signal(told, (3, 16, 16)).maps
    assert shown[0, 1, :, 0, 0].tolist() == [1, 0, 0]
    everywhere = StructureInput(picture, frames=[0, 2]).signal(told, (3, 16, 16)).maps
    assert torch.equal(everywhere[:, :, 0], everywhere[:, :, 2]) and everywhere[0, 1, :, 0, 0].tolist() == [1, 0, 1]
    single = StructureConditioning({"shape_edges": ShapeEdges()}, controller=dict)
    assert StructureInput(picture, {"canny": Canny()}).signal(single, (3, 16, 16)).maps[:, 0].any()
    for settings, message in (({"signals": {"hed": Canny()}}, "trained with structure=canny,given"),
                              ({"frames": [3]}, "from 0 to 2")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            StructureInput(clip, **settings).signal(told, (3, 16, 16))


def test_edge_f1_by_hand():
    def edges(*columns):
        found = torch.zeros(1, 1, 1, 3, 9, dtype=torch.bool)
        found[..., 1, list(columns)] = True
        return found

    assert near(edges(4), 1).sum() == 9
    assert edge_f1(edges(1, 2), edges(1, 2)).item() == 1
    assert edge_f1(edges(1), edges(2)).item() == 1 and edge_f1(edges(1), edges(2), tolerance=0).item() == 0
    # of 4 found 1 is told, and of 3 told 1 is found: P = 1/4, R = 1/3; within a pixel 2 of 4 and 2 of 3
    assert edge_f1(edges(0, 2, 7, 8), edges(1, 2, 4), 0).item() == pytest.approx(2 / 7)
    assert edge_f1(edges(0, 1, 6, 8), edges(0, 2, 4)).item() == pytest.approx(4 / 7)
    assert edge_f1(edges(), edges()).item() == 1 and edge_f1(edges(), edges(1)).item() == 0
    metric = EdgeF1()
    metric.update(square(), reference=square(), keys=["a"])
    metric.update(square(low=0, high=4), reference=square(low=8, high=15), keys=["b"])
    found = metric.result()
    assert sorted(found.scores) == [0.0, 1.0] and found.value == 0.5 and "tolerance" in found.settings


def test_depth_error_by_hand():
    def nearness(*values):
        return torch.tensor(values).view(1, 1, 1, 2, 2)

    told = nearness(0.0, 1.0, 0.0, 1.0)
    assert depth_error(nearness(0.2, 0.6, 0.2, 0.6), told).item() == pytest.approx(0, abs=1e-7)  # scale and shift alone
    # uncorrelated, upside down and flat: what is left is the standard deviation of what was told
    for found in (nearness(0.0, 1.0, 1.0, 0.0), nearness(1.0, 0.0, 1.0, 0.0), nearness(0.3, 0.3, 0.3, 0.3)):
        assert depth_error(found, told).item() == pytest.approx(0.5)
    # covariance 1/8 and variance 3/16: scale 2/3, left of the variance 1/4 - (1/8)^2 / (3/16) = 1/6
    assert depth_error(nearness(0.0, 0.0, 0.0, 1.0), told).item() == pytest.approx(6**-0.5)
    metric = DepthError(extractor=GivenSignal())
    metric.update(square(), reference=square(), keys=["a"])
    assert (
        metric.result().value == pytest.approx(0, abs=1e-6) and "GivenSignal" in metric.result().settings["extractor"]
    )
    with pytest.raises(UserError, match=r"metrics\.depth_error\.path is not set"):
        DepthError()
