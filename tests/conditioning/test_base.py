import pytest
import torch

from vidlab.conditioning.base import Conditioning, Evidence, NoConditioning, by_latent_frame, frames_per_latent
from vidlab.errors import UserError


def test_even_and_causal_clips():
    assert frames_per_latent(8, 2) == (4, False)
    assert frames_per_latent(8, 8) == (1, False)
    assert frames_per_latent(93, 24) == (4, True)
    assert frames_per_latent(5, 2) == (4, True)
    assert frames_per_latent(9, 3) == (4, True)  # not three times three
    assert frames_per_latent(1, 1) == (1, False)
    with pytest.raises(ValueError, match="8 frames do not map evenly onto 3"):
        frames_per_latent(8, 3)


def test_a_lone_first_frame_is_repeated():
    # Open-Sora Plan v1.3: 93 frames fold to 24 x 4 = 96 with frame 0 four times
    folded = by_latent_frame(torch.arange(93)[None], 24)
    assert folded.shape == (1, 24, 4)
    assert folded[0, 0].tolist() == [0, 0, 0, 0] and folded[0, 1].tolist() == [1, 2, 3, 4]
    assert folded[0, -1].tolist() == [89, 90, 91, 92]
    assert by_latent_frame(torch.arange(8)[None], 2).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_without_conditioning_nothing_can_be_given(make_draw):
    none = NoConditioning()
    assert isinstance(none, Conditioning) and none.usual_frames(8) == 0
    pixels = torch.zeros(2, 3, 4, 8, 8)
    assert none.observe(pixels, pixels, lambda x: x, make_draw(), 0) == Evidence()
    assert none.given(pixels, torch.zeros(2, 4, dtype=torch.bool), lambda x: x) == Evidence()
    with pytest.raises(UserError, match="trained without conditioning on frames"):
        none.given(pixels, torch.ones(2, 4, dtype=torch.bool), lambda x: x)


def test_each_stride_is_told_from_the_sizes_alone():
    for stride in (1, 2, 4, 8, 16):
        for latent in range(1, 40):
            assert frames_per_latent(stride * latent, latent) == (stride, False)
            if stride > 1 and latent > 1:
                assert frames_per_latent(1 + stride * (latent - 1), latent) == (stride, True)


def test_nine_frames_of_a_causal_autoencoder():
    folded = by_latent_frame(torch.arange(9)[None], 3)
    assert folded.tolist() == [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]]
