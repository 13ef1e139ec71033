import math

import pytest
import torch

from vidlab.autoencoders.trilinear import Trilinear
from vidlab.errors import UserError


@pytest.mark.parametrize(
    ("span", "size", "grid"),
    [
        (9, (9, 64, 64), (1, 22, 22)),  # 512 positions: 22 * 22 = 484, 23 * 23 = 529
        (5, (9, 64, 64), (2, 16, 16)),  # 2 * 16 * 16 = 512
        (4, (9, 64, 64), (3, 13, 13)),  # 3 * 13 * 13 = 507
        (1, (9, 64, 64), (9, 7, 7)),  # 9 * 7 * 7 = 441
        (9, (17, 64, 128), (2, 20, 41)),  # 5 * 8 * 16 * 8 / 3 = 1706: 853 a frame; 20.65 x 41.3
        (9, (1, 8, 8), (1, 1, 1)),  # 2 positions
    ],
)
def test_the_small_clip_has_at_most_the_values_of_the_latents(span, size, grid):
    model = Trilinear(span=span)
    assert model.grid(model.latent_shape(*size)) == grid
    assert 3 * math.prod(grid) <= math.prod(model.latent_shape(*size))


def test_latents_are_the_small_clip_and_zeros():
    x = torch.rand(2, 3, 9, 64, 64)
    latents = Trilinear().encode(x)
    assert latents.shape == (2, 8, 3, 8, 8)
    values = latents.flatten(1)
    assert (values[:, 1452:] == 0).all() and (values[:, :1452] != 0).all()
    # one of nine frames is the middle one, and 64 / 22 rows apart the centers lie at 64 / 22 (n + 1/2) - 1/2
    center = 64 / 22 * 0.5 - 0.5  # 0.9545
    rows = (1 - center) * x[:, :, 4, 0] + center * x[:, :, 4, 1]
    corner = (1 - center) * rows[:, :, 0] + center * rows[:, :, 1]
    torch.testing.assert_close(values[:, :1452].view(2, 3, 22, 22)[:, :, 0, 0], corner)


def test_a_gradient_survives_and_a_checkerboard_does_not():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 9, 64, 64).contiguous()
    model = Trilinear()
    inner = (slice(None),) * 4 + (slice(2, -2),)
    torch.testing.assert_close(model.decode(model.encode(ramp))[inner], ramp[inner])
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = (1.0 - 2 * ((x + y) % 2)).expand(1, 3, 9, 64, 64)
    assert (model.decode(model.encode(board)) - board).abs().mean() > 0.9


def test_settings_out_of_range():
    for settings, message in (({"channels": 2}, "channels=2 must be 3"), ({"span": 0}, "span=0 must be 1")):
        with pytest.raises(UserError, match=message):
            Trilinear(**settings)
