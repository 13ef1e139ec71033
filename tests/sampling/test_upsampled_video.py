"""Temporal upsampling of videos of any length by clips that know each n-th frame."""

from itertools import pairwise

import pytest
import torch

from vidlab.errors import UserError
from vidlab.sampling.long_video import starts_of_clips, upsampled


def video(count: int) -> torch.Tensor:
    return torch.arange(1.0, count + 1).reshape(1, 1, count, 1, 1).expand(2, 3, count, 4, 4)


class Interpolating:
    """Stands for a model: fills what is not given with the mean of its neighbors; after the last with 99."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[float]]] = []

    def __call__(self, pixels, known, number):
        given = known[0].nonzero().flatten().tolist()
        self.asked.append((number, pixels[0, 0, given, 0, 0].tolist()))
        made = torch.full_like(pixels, 99)
        made[:, :, given] = -1  # what a model makes of given frames is not shown
        for a, b in pairwise(given):
            for place in range(a + 1, b):
                made[:, :, place] = torch.lerp(pixels[:, :, a], pixels[:, :, b], (place - a) / (b - a))
        return made


@pytest.mark.parametrize(("count", "every"), [(2, 2), (3, 2), (4, 2), (5, 2), (9, 2), (7, 3)])
def test_frames_of_any_number_are_kept_and_the_gaps_filled(count, every):
    model = Interpolating()
    made = upsampled(model, video(count), every, 8)
    assert made.shape == (2, 3, (count - 1) * every + 1, 4, 4)
    torch.testing.assert_close(made[1, 2, :, 3, 0], torch.linspace(1, count, (count - 1) * every + 1))
    assert torch.equal(made[:, :, ::every], video(count))


def test_clips_share_a_frame_and_the_last_is_full():
    model = Interpolating()
    upsampled(model, video(9), 2, 8)  # four given frames to a clip
    assert sorted(model.asked) == [(0, [1, 2, 3, 4]), (1, [4, 5, 6, 7]), (2, [6, 7, 8, 9])]
    assert starts_of_clips(7, 4) == [0, 3]
    assert starts_of_clips(3, 4) == [0]


def test_what_cannot_be_upsampled():
    for count, every in ((1, 2), (4, 8)):
        with pytest.raises(UserError, match="cannot be upsampled"):
            upsampled(Interpolating(), video(count), every, 8)
