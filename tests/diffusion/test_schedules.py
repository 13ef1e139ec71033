import math

import pytest
import torch

from vidlab.diffusion.schedules import LinearPath, PathCoefficients, over_latents

LATENTS = torch.zeros(2, 3, 4, 5, 6)


def test_linear_path_at_a_quarter():
    path = LinearPath().coefficients(torch.tensor([0.25]))
    assert [x.item() for x in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)] == [0.75, 0.25, -1.0, 1.0]


def test_data_at_zero_and_noise_at_one():
    path = LinearPath().coefficients(torch.tensor([0.0, 1.0]))
    assert path.alpha.tolist() == [1.0, 0.0]
    assert path.sigma.tolist() == [0.0, 1.0]


def test_derivatives_are_those_of_the_path():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    h = 1e-5
    path, up, down = (LinearPath().coefficients(t + d) for d in (0, h, -h))
    torch.testing.assert_close((up.alpha - down.alpha) / (2 * h), path.d_alpha, rtol=0, atol=1e-9)
    torch.testing.assert_close((up.sigma - down.sigma) / (2 * h), path.d_sigma, rtol=0, atol=1e-9)


def test_noise_level_of_a_log_snr():
    # log SNR = 2 log((1 - t) / t): 0 at the middle, 2 log 3 at t = 1/4
    log_snr = torch.tensor([0.0, 2 * math.log(3), -2 * math.log(3)], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(LinearPath().t_at_log_snr(log_snr), expected)


def test_log_snr_round_trip():
    log_snr = torch.linspace(-12, 12, 49, dtype=torch.float64)
    path = LinearPath().coefficients(LinearPath().t_at_log_snr(log_snr))
    torch.testing.assert_close(2 * (path.alpha / path.sigma).log(), log_snr, rtol=0, atol=1e-9)


def test_the_embedded_number():
    t = torch.tensor([0.0, 0.5, 1.0])
    assert LinearPath().embedded(t).tolist() == [0, 500, 1000]
    assert LinearPath(embedding_scale=1).embedded(t).tolist() == [0, 0.5, 1]


def test_levels_broadcast_over_latents():
    per_clip = over_latents(torch.tensor([1.0, 2.0]), LATENTS)
    assert per_clip.shape == (2, 1, 1, 1, 1) and per_clip[1].item() == 2
    per_frame = over_latents(torch.arange(8.0).view(2, 4), LATENTS)
    assert per_frame.shape == (2, 1, 4, 1, 1) and per_frame[1, 0, 2].item() == 6
    path = LinearPath().coefficients(torch.rand(2, 4)).like(LATENTS)
    assert isinstance(path, PathCoefficients) and path.d_sigma.shape == (2, 1, 4, 1, 1)


@pytest.mark.parametrize("frames", [3, 5])
def test_a_level_for_every_frame_or_one_for_all(frames):
    with pytest.raises(ValueError, match=rf"\(2, {frames}\)"):
        over_latents(torch.zeros(2, frames), LATENTS)
