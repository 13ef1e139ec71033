import pytest
import torch

from vidlab.autoencoders.identity import Identity
from vidlab.clip import Stride
from vidlab.conditioning.base import Conditioning, FrameConditions, NoConditioning, TrainingClips, by_latent_frame
from vidlab.errors import UserError

EVEN, CAUSAL = Stride(4, 8, 8), Stride(4, 8, 8, first_frame_alone=True)


def test_even_and_causal_clips():
    assert by_latent_frame(torch.arange(8)[None], 2, EVEN).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert by_latent_frame(torch.arange(5)[None], 2, CAUSAL).tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4]]]
    assert by_latent_frame(torch.arange(3)[None], 3, Stride(1, 8, 8)).tolist() == [[[0], [1], [2]]]
    for frames, latent, stride in ((8, 3, EVEN), (8, 2, CAUSAL), (1, 1, EVEN)):
        with pytest.raises(ValueError, match=f"{frames} frames do not map onto {latent} latent frames of stride 4"):
            by_latent_frame(torch.arange(frames)[None], latent, stride)


def test_a_single_frame_fills_its_latent_frame():
    # Open-Sora Plan v1.3: the mask of an image has four channels, as every other has
    assert by_latent_frame(torch.tensor([[7]]), 1, CAUSAL).tolist() == [[[7, 7, 7, 7]]]


def test_a_lone_first_frame_is_repeated():
    # Open-Sora Plan v1.3: 93 frames fold to 24 x 4 = 96 with frame 0 four times
    folded = by_latent_frame(torch.arange(93)[None], 24, CAUSAL)
    assert folded.shape == (1, 24, 4)
    assert folded[0, 0].tolist() == [0, 0, 0, 0] and folded[0, 1].tolist() == [1, 2, 3, 4]
    assert folded[0, -1].tolist() == [89, 90, 91, 92]


def test_without_conditioning_nothing_can_be_given(make_draw):
    none = NoConditioning()
    assert isinstance(none, Conditioning) and none.default_num_frames(8) == 0
    pixels = torch.zeros(2, 3, 4, 8, 8)
    assert none.for_training(TrainingClips(pixels, pixels, make_draw(), 0), Identity()) == FrameConditions()
    assert none.for_inference(pixels, torch.zeros(2, 4, dtype=torch.bool), Identity()) == FrameConditions()
    with pytest.raises(UserError, match="trained without conditioning on frames"):
        none.for_inference(pixels, torch.ones(2, 4, dtype=torch.bool), Identity())


def test_nine_frames_of_a_causal_autoencoder():
    folded = by_latent_frame(torch.arange(9)[None], 3, CAUSAL)
    assert folded.tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]]
