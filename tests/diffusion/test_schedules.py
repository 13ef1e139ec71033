import math

import pytest
import torch

from vidlab.diffusion.betas import CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from vidlab.diffusion.schedules import LinearPath, PathCoefficients, Schedule, VariancePreserving, over_latents
from vidlab.errors import UserError

LATENTS = torch.zeros(2, 3, 4, 5, 6)
TABLES = [LinearBetas(), ScaledLinearBetas(), CosineBetas(), ZeroTerminalSNR(LinearBetas())]
tables = pytest.mark.parametrize("betas", TABLES, ids=lambda b: type(b).__name__)
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


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


@tables
def test_ddpm_steps_are_the_knots(betas):
    path = VariancePreserving(betas).coefficients(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    signal = (1 - betas.values()).cumprod(0)
    torch.testing.assert_close(path.alpha, signal.sqrt(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(path.sigma, (1 - signal).sqrt(), rtol=1e-12, atol=0)


def test_zero_terminal_snr_at_its_middle():
    # alpha^2 of step 500 by the public implementation
    path = VariancePreserving(ZeroTerminalSNR(LinearBetas())).coefficients(torch.tensor([0.501]))
    assert path.alpha.item() ** 2 == pytest.approx(0.075246, rel=1e-5)


@tables
@precisions
def test_clean_at_zero(betas, dtype):
    path = VariancePreserving(betas).coefficients(torch.zeros(1, dtype=dtype))
    assert path.alpha.dtype == dtype and (path.alpha.item(), path.sigma.item()) == (1, 0)


@precisions
def test_zero_terminal_snr_is_pure_noise(dtype):
    path = VariancePreserving(ZeroTerminalSNR(LinearBetas())).coefficients(torch.ones(1, dtype=dtype))
    assert (path.alpha.item(), path.sigma.item()) == (0, 1)
    assert path.d_alpha.isfinite() and path.d_alpha < 0 and path.d_sigma == 0


@tables
def test_the_variance_is_preserved_between_the_knots_too(betas):
    t = torch.linspace(0, 1, 7919, dtype=torch.float64)
    path = VariancePreserving(betas).coefficients(t)
    torch.testing.assert_close(path.alpha**2 + path.sigma**2, torch.ones_like(t), rtol=0, atol=1e-15)
    assert (path.alpha.diff() < 0).all() and (path.sigma.diff() >= 0).all()
    single = VariancePreserving(betas).coefficients(t.float())
    torch.testing.assert_close(single.alpha**2 + single.sigma**2, torch.ones(7919), rtol=0, atol=3e-7)


@tables
def test_derivatives_within_every_interval(betas):
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    h = 1e-7
    schedule = VariancePreserving(betas)
    path, up, down = (schedule.coefficients(t + d) for d in (0, h, -h))
    torch.testing.assert_close((up.alpha - down.alpha) / (2 * h), path.d_alpha, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((up.sigma - down.sigma) / (2 * h), path.d_sigma, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_at_a_knot_the_slope_is_that_of_the_interval_below(dtype):
    # N = 2: alpha^2 = 1, 3/4, 3/8, so phi = 0, pi/6, atan(sqrt(5/3))
    schedule = VariancePreserving(LinearBetas(2, 0.25, 0.5))
    angles = [0, math.pi / 6, math.atan(math.sqrt(5 / 3))]
    path = schedule.coefficients(torch.tensor([0.5, 1.0], dtype=dtype))
    slopes = [2 * (angles[1] - angles[0]), 2 * (angles[2] - angles[1])]
    expected = [-math.sin(angle) * slope for angle, slope in zip(angles[1:], slopes, strict=True)]
    assert path.d_alpha.tolist() == pytest.approx(expected, rel=1e-6)
    half = schedule.coefficients(torch.tensor([0.25], dtype=dtype))  # halfway the angle is pi/12
    assert half.alpha.item() == pytest.approx(math.cos(math.pi / 12), rel=1e-6)
    # 0.057 * 1000 is not 57 in floating point; the knot is found nevertheless
    thousand = VariancePreserving(LinearBetas())
    at = [thousand.coefficients(torch.tensor([t], dtype=dtype)) for t in (0.0565, 0.057)]
    slope_at = [(path.d_sigma / path.alpha).item() for path in at]
    assert slope_at[0] == pytest.approx(slope_at[1], rel=1e-6)


@tables
def test_variance_preserving_log_snr_round_trip(betas):
    schedule = VariancePreserving(betas)
    log_snr = torch.linspace(-5, 12, 171, dtype=torch.float64)
    path = schedule.coefficients(schedule.t_at_log_snr(log_snr))
    torch.testing.assert_close(2 * (path.alpha / path.sigma).log(), log_snr, rtol=0, atol=1e-9)
    t = torch.linspace(0.0005, 1, 1777, dtype=torch.float64)
    path = schedule.coefficients(t)
    torch.testing.assert_close(schedule.t_at_log_snr(2 * (path.alpha / path.sigma).log()), t, rtol=0, atol=1e-9)


def test_what_lies_beyond_the_noisiest_step_is_the_noisiest_step():
    noisier = torch.tensor([-40.0, -math.inf, math.inf])
    assert VariancePreserving(LinearBetas()).t_at_log_snr(noisier).tolist() == [1, 1, 0]


def test_the_number_of_the_ddpm_step_is_embedded():
    t = torch.tensor([0.0, 0.001, 0.057, 0.4321, 1.0])
    embedded = VariancePreserving(LinearBetas()).embedded(t)
    assert embedded.dtype == torch.float32 and embedded.tolist() == pytest.approx([-1, 0, 56, 431.1, 999], abs=1e-4)
    assert embedded[2] == 56


def test_a_table_of_your_own_is_checked():
    class Wrong(LinearBetas):
        def values(self):
            return torch.tensor([0.1, 1.0, 0.2], dtype=torch.float64)

    with pytest.raises(UserError, match=r"objective\.schedule\.betas"):
        VariancePreserving(Wrong())


def test_schedules_compare_by_their_settings():
    assert VariancePreserving(LinearBetas()) == VariancePreserving(LinearBetas())
    assert VariancePreserving(LinearBetas()) != VariancePreserving(LinearBetas(500))
    assert len({VariancePreserving(LinearBetas()), VariancePreserving(LinearBetas())}) == 1
    for schedule in (LinearPath(), VariancePreserving(CosineBetas())):
        assert isinstance(schedule, Schedule)
        assert schedule.coefficients(torch.rand(2, 4)).d_sigma.shape == (2, 4)
