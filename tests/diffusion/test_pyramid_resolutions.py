"""Check 3, and the two pyramids against torch's own interpolation."""

import pytest
import torch
from torch.nn import functional as F

from vidlab.diffusion.pyramid_resolutions import (
    block_noise,
    check_divides,
    doubled,
    halved,
    latent_pyramid,
    noise_pyramid,
)
from vidlab.errors import UserError


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resized(latents, size, mode):
    frames = latents.transpose(1, 2).flatten(0, 1)
    return F.interpolate(frames, size=size, mode=mode).unflatten(0, (len(latents), -1)).transpose(1, 2)


def test_half_the_size_is_bilinear_and_twice_is_nearest():
    latents = normal(2, 3, 4, 8, 12)
    torch.testing.assert_close(halved(latents), resized(latents, (4, 6), "bilinear"))
    torch.testing.assert_close(doubled(latents), resized(latents, (16, 24), "nearest"))


def test_pyramids_go_from_coarse_to_fine():
    latents = normal(1, 2, 3, 8, 8)
    assert [level.shape[-1] for level in latent_pyramid(latents, 3)] == [2, 4, 8]
    assert latent_pyramid(latents, 3)[2] is latents
    torch.testing.assert_close(latent_pyramid(latents, 3)[0][0, 0, 0, 0, 0], latents[0, 0, 0, :4, :4].mean())
    torch.testing.assert_close(noise_pyramid(latents, 3)[0][0, 0, 0, 0, 0], latents[0, 0, 0, :4, :4].sum() / 4)


def test_noise_keeps_unit_variance_at_every_level():
    for level in noise_pyramid(normal(1, 1, 4, 256, 256), 3):
        assert level.var().item() == pytest.approx(1.0, abs=0.02)


def test_block_noise_sums_to_zero_and_has_correlation_minus_a_third():
    noise = block_noise(normal(1, 1, 1, 400, 2000))
    assert halved(noise).abs().max() < 1e-12
    blocks = noise[0, 0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
    wanted = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(blocks.T @ blocks / len(blocks), wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("gamma", [0.05, 0.2, 1 / 3])
def test_the_covariance_of_block_noise_is_exact(gamma):
    """As a linear map A of one block, A A^T = (1 + gamma) I - gamma J."""
    basis = torch.eye(4, dtype=torch.float64).reshape(4, 1, 1, 2, 2)
    map_ = block_noise(basis, gamma).reshape(4, 4)
    wanted = (1 + gamma) * torch.eye(4, dtype=torch.float64) - gamma
    torch.testing.assert_close(map_.T @ map_, wanted, atol=1e-12, rtol=0)


def test_sizes_that_cannot_be_halved():
    check_divides(8, 12, 3)
    with pytest.raises(UserError, match=r"objective\.stages=3: latents of width 6.*Use objective\.stages=2"):
        check_divides(8, 6, 3)
    with pytest.raises(UserError, match=r"latents of height 3.*Use objective\.stages=1"):
        check_divides(3, 8, 2)
