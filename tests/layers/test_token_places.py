import pytest
import torch
from torch.nn import functional as F

from vidlab.layers.layouts import Grid
from vidlab.layers.positions import fourier_at, fourier_positions
from vidlab.layers.rope import rotation_along, rotation_at
from vidlab.layers.token_places import frame_causal, next_frames, resampled, token_places

SCALE = (1.0, 2.0, 0.5)


def test_four_tokens_stand_in_the_middle_of_eight():
    assert resampled(4, 8).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert resampled(8, 8).tolist() == list(range(8))


@pytest.mark.parametrize(("size", "onto"), [(4, 8), (2, 8), (3, 12), (5, 5)])
def test_places_are_interpolated_linearly(size, onto):
    wanted = F.interpolate(torch.arange(float(onto))[None, None], size=size, mode="linear", align_corners=False)
    torch.testing.assert_close(resampled(size, onto), wanted[0, 0])


def test_tokens_of_a_coarser_frame():
    places = token_places(Grid(2, 1, 2), torch.tensor([3, 7]), Grid(1, 4, 4))
    assert places.tolist() == [[3, 1.5, 0.5], [3, 1.5, 2.5], [7, 1.5, 0.5], [7, 1.5, 2.5]]


@pytest.mark.parametrize("planes", [(2, 3, 3), (0, 4, 4)])
def test_on_a_grid_of_its_own_positions_are_those_without_history(planes):
    grid = Grid(3, 4, 2)
    places = token_places(grid, torch.arange(3), grid)
    torch.testing.assert_close(rotation_at(places, planes, 100.0, SCALE), rotation_along(grid, planes, 100.0, SCALE))
    torch.testing.assert_close(fourier_at(places, 32, SCALE), fourier_positions(grid, 32, SCALE))


def test_a_frame_sees_itself_and_those_before():
    wanted = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert torch.equal(frame_causal(torch.tensor([0, 1, 1, 2])), wanted)


def test_frames_follow_on_the_last():
    assert next_frames([torch.tensor([0, 1]), torch.tensor([5])], 2).tolist() == [6, 7]
