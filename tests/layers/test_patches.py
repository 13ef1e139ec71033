import pytest
import torch

from vidlab.layers.layouts import Grid
from vidlab.layers.patches import inflated_embedding, inflated_head, patch_grid, patchify, per_token, unpatchify

PATCH = (2, 2, 3)


def test_patches_by_hand():
    latents = torch.randn(1, 3, 4, 4, 6)
    tokens, grid = patchify(latents, PATCH), patch_grid(latents, PATCH)
    assert grid == Grid(2, 2, 2)
    # token (t 1, y 1, x 0) holds frames 2-3, rows 2-3 and columns 0-2, in the order of the latents' own axes
    torch.testing.assert_close(tokens[0, 1 * 4 + 1 * 2 + 0], latents[0, :, 2:4, 2:4, 0:3].flatten())
    assert torch.equal(unpatchify(tokens, grid, PATCH), latents)


def test_the_order_is_that_of_a_convolution():
    latents, weight = torch.randn(2, 3, 4, 4, 6), torch.randn(5, 3, *PATCH)
    by_convolution = torch.nn.functional.conv3d(latents, weight, stride=PATCH).flatten(2).mT
    torch.testing.assert_close(patchify(latents, PATCH) @ weight.flatten(1).T, by_convolution)


def test_latents_that_do_not_divide():
    with pytest.raises(ValueError, match="latents of 3x4x6 do not divide into patches of 2x2x3"):
        patch_grid(torch.zeros(1, 3, 3, 4, 6), PATCH)


def test_conditions_per_frame_become_conditions_per_token():
    assert per_token(torch.ones(2, 7), 2, Grid(2, 1, 3)).shape == (2, 1, 7)
    frames = torch.tensor([[[0.0], [2.0], [4.0], [8.0]]])
    assert per_token(frames, 2, Grid(2, 1, 3)).flatten().tolist() == [1, 1, 1, 6, 6, 6]


def test_inflation_by_hand():
    # one channel, patches of 1 x 1 x 2 to 2 x 1 x 2: each frame gets half
    assert inflated_embedding(torch.tensor([[4.0, 6.0]]), 1, (2, 1, 2)).tolist() == [[2, 3, 2, 3]]
    assert inflated_head(torch.tensor([4.0, 6.0, 1.0, 2.0]), 2, (2, 1, 2)).tolist() == [4, 6, 4, 6, 1, 2, 1, 2]
    assert inflated_embedding(torch.ones(1, 3), 1, (2, 1, 2)) is None
    assert inflated_embedding(torch.ones(1, 2), 1, (1, 1, 8)) is None
