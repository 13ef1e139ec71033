"""What models are told of held-out clips while they are trained and evaluated: their structure, their first frames."""

from unittest.mock import Mock

import pytest
import torch

from vidlab.conditioning.base import NoConditioning, check_conditioning_frames
from vidlab.conditioning.frame_replacement import FrameReplacement
from vidlab.conditioning.patterns import First
from vidlab.conditioning.structure.conditioning import StructureConditioning
from vidlab.conditioning.structure.signals import GivenSignal
from vidlab.data.held_out import held_out_clips, held_out_frames, held_out_structure
from vidlab.data.module import ClipDataModule
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.moving_shapes.signals import ShapeMasks
from vidlab.errors import UserError
from vidlab.lab.evaluation.generation import Recipe, followed_clips, generate_held_out
from vidlab.training.video_diffusion import VideoDiffusion

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ClipDataModule:
    source = MovingShapes(4, 16, 16, train_clips=4, val_clips=3, cache_dir=tmp_path_factory.mktemp("shapes"))
    return ClipDataModule(source, "shapes", 4, 16, 16, batch_size=2, num_workers=0, val_clips=3)


@pytest.fixture
def told() -> StructureConditioning:
    return StructureConditioning({"given": GivenSignal(), "shape_masks": ShapeMasks()}, controller=dict)


def test_clips_are_those_of_validation(data):
    first, second = data.val_dataloader()
    found = held_out_clips(data, [2, 0])
    assert found.keys == (second.keys[0], first.keys[0])
    assert torch.equal(found.pixels, torch.stack([second.pixels[0], first.pixels[0]]))
    assert found.captions[1] == data.held_out_captions(1)[0]


def test_structure_is_that_of_all_frames_over_and_over(data, told):
    found = held_out_structure(told, data, range(5), CPU)
    clips = held_out_clips(data, [0, 1, 2, 0, 1])
    assert found.maps.shape == (5, 4, 4, 16, 16) and (found.maps[:, 1::2] == 1).all()
    assert torch.equal(found.maps, told.whole_structure(clips.pixels, clips.factors).maps)
    assert found.maps[:, 2].flatten(1).amax(1).min() > 0  # of the true factors
    assert held_out_structure(NoConditioning(), Mock(spec=ClipDataModule), range(5), CPU) is None


def test_first_frames_are_given_and_no_others(data):
    pixels, known = held_out_frames(data, [2, 0], 1)
    assert torch.equal(pixels, held_out_clips(data, [2, 0]).pixels)
    assert known.tolist() == [[True, False, False, False]] * 2


def test_more_frames_than_can_be_given_are_refused():
    with pytest.raises(UserError, match=r"here=1: this model was trained without .* Use here=0"):
        check_conditioning_frames(1, NoConditioning(), 4, "here")
    with pytest.raises(UserError, match="conditioning_frames=4: the clips have 4 frames; use 0 to 3"):
        check_conditioning_frames(4, FrameReplacement(First(1)), 4)
    check_conditioning_frames(0, NoConditioning(), 1)
    check_conditioning_frames(3, FrameReplacement(First(1)), 4)


@pytest.mark.parametrize("follows", [True, False])
def test_an_evaluation_tells_each_clip_its_own_structure_and_keeps_what_was_followed(data, told, tmp_path, follows):
    asked = []

    def clips(captions, draw, pixels, known, micro, structure):
        asked.append(structure)
        return torch.zeros(len(captions), 3, 4, 16, 16)

    module = Mock(spec=VideoDiffusion, device=CPU, clip_shape=(4, 16, 16), text_encoder=Mock())
    module.conditioning, module.pipeline.clips = told if follows else NoConditioning(), clips
    recipe = Recipe(0, 0, 2, "32-true", 8.0)
    made = generate_held_out(module, iter(data.val_dataloader()), tmp_path, recipe, lambda count: None)
    if not follows:
        assert asked == [None, None]
        return
    first, second = data.val_dataloader()
    for batch, signal in zip((first, second), asked, strict=True):
        assert torch.equal(signal.maps, told.whole_structure(batch.pixels, batch.factors).maps)
    originals = followed_clips(iter(data.val_dataloader()), tmp_path, 8.0)
    assert [clip.key for clip in originals] == [clip.key for clip in made]
    shown = torch.from_numpy(originals[2].frames()).permute(3, 0, 1, 2)
    assert torch.equal(shown, second.content[0])
    assert followed_clips(iter(()), tmp_path, 8.0) == originals
