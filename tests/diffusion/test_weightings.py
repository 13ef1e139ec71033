"""Loss weights against hand values."""

import pytest
import torch

from vidlab.diffusion.betas import CosineBetas, LinearBetas, ZeroTerminalSNR
from vidlab.diffusion.parameterizations import Epsilon, Velocity, VPrediction, X0Prediction, noised
from vidlab.diffusion.schedules import LinearPath, PathCoefficients, VariancePreserving
from vidlab.diffusion.weightings import P2, Constant, MinSNR, VelocityError, Weighting
from vidlab.errors import UserError

ALL = [Velocity(), VPrediction(), Epsilon(), X0Prediction()]
names = pytest.mark.parametrize("parameterization", ALL, ids=lambda p: p.name)
ZERO_SNR = VariancePreserving(ZeroTerminalSNR(LinearBetas()))
PATHS = [LinearPath(), ZERO_SNR, VariancePreserving(CosineBetas())]


def at_snr(*values: float) -> PathCoefficients:
    """A variance-preserving path at given signal-to-noise ratios, with time the angle."""
    snr = torch.tensor(values, dtype=torch.float64)
    alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    return PathCoefficients(alpha, sigma, -sigma, alpha)


def test_constant_weight_is_one():
    path = LinearPath().coefficients(torch.tensor([0.0, 0.3, 1.0]))
    assert Constant().weight(path, Velocity()).tolist() == [1, 1, 1]


def test_velocity_error_is_one_over_t_squared_on_the_linear_path():
    path = LinearPath().coefficients(torch.tensor([0.1, 0.25, 0.5, 1.0]))
    # 1 / max(t, 0.25)^2
    torch.testing.assert_close(VelocityError(0.25).weight(path, X0Prediction()), torch.tensor([16.0, 16.0, 4.0, 1.0]))


@names
@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_a_weighted_error_is_the_error_of_the_implied_velocity(parameterization, schedule):
    x0, noise, wrong = torch.randn(3, 2, 1, 2, 2, 2, dtype=torch.float64)
    path = schedule.coefficients(torch.tensor([0.3, 0.6], dtype=torch.float64))
    wide = path.like(x0)
    z = noised(x0, noise, wide)
    implied = parameterization.denoised(wrong, z, wide)
    velocity = Velocity().target(implied.x0, implied.epsilon, wide)
    expected = (velocity - Velocity().target(x0, noise, wide)).square()
    weight = VelocityError(0.05).weight(path, parameterization).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(weight * (wrong - parameterization.target(x0, noise, wide)).square(), expected)


def test_the_bound_holds_at_the_end_where_the_error_grows():
    path = LinearPath().coefficients(torch.tensor([0.0, 0.1, 0.9, 1.0]))
    assert VelocityError(0.5).weight(path, X0Prediction()).tolist() == pytest.approx([4, 4, 1 / 0.81, 1])
    assert VelocityError(0.5).weight(path, Epsilon()).tolist() == pytest.approx([1, 1 / 0.81, 4, 4])
    for schedule in PATHS:
        path = schedule.coefficients(torch.linspace(0, 1, 101))
        torch.testing.assert_close(VelocityError(1.0).weight(path, Velocity()), torch.ones(101))


def test_the_weight_of_x0_is_bit_for_bit_that_of_the_clamped_sigma():
    path = LinearPath().coefficients(torch.rand(1000))
    slope = path.d_sigma * path.alpha - path.d_alpha * path.sigma
    expected = (slope / path.sigma.clamp(min=0.2)).square()
    assert torch.equal(VelocityError(0.2).weight(path, X0Prediction()), expected)


@pytest.mark.parametrize(
    ("parameterization", "expected"),
    # with gamma = 5. v: min(SNR, 5) / (SNR + 1); eps: min(1, 5 / SNR); x0: min(SNR, 5)
    [
        (VPrediction(), [0.1 / 1.1, 0.5, 0.8, 5 / 6, 5 / 11, 5 / 101]),
        (Velocity(), [0.1 / 1.1, 0.5, 0.8, 5 / 6, 5 / 11, 5 / 101]),
        (Epsilon(), [1, 1, 1, 1, 0.5, 0.05]),
        (X0Prediction(), [0.1, 1, 4, 5, 5, 5]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_min_snr_by_hand(parameterization, expected):
    weight = MinSNR().weight(at_snr(0.1, 1, 4, 5, 10, 100), parameterization)
    assert weight.tolist() == pytest.approx(expected)


def test_min_snr_of_v_on_the_zero_terminal_snr_table():
    path = ZERO_SNR.coefficients(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    weight = MinSNR().weight(path, VPrediction())
    for step, value in {0: 0.0005, 100: 0.5275, 130: 0.8318, 500: 0.0752, 900: 1.03e-4}.items():
        assert weight[step].item() == pytest.approx(value, rel=1e-2 if value < 1e-3 else 1e-3)
    assert weight.argmax() == 130 and weight.mean().item() == pytest.approx(0.1907, abs=5e-5)
    assert weight[999] == 0 and weight[600:].max() < 0.04
    alive = MinSNR(min_weight=0.05).weight(path, VPrediction())
    assert alive.min() == 0.05 and torch.equal(alive[weight > 0.05], weight[weight > 0.05])


@pytest.mark.parametrize(
    ("parameterization", "expected"),
    # 1 / (1 + SNR) on eps; an error of v is one of eps times alpha, an error of x0 one times alpha / sigma
    [
        (Epsilon(), [1 / 1.25, 0.5, 0.2]),
        (VPrediction(), [0.2 / 1.25, 0.25, 0.8 / 5]),
        (Velocity(), [0.2 / 1.25, 0.25, 0.8 / 5]),
        (X0Prediction(), [0.25 / 1.25, 0.5, 4 / 5]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_p2_by_hand(parameterization, expected):
    path = at_snr(0.25, 1, 4)
    assert P2().weight(path, parameterization).tolist() == pytest.approx(expected)
    twice = P2(k=1.0, gamma=2.0).weight(path, parameterization) * torch.tensor([1.25, 2, 5])
    assert twice.tolist() == pytest.approx(expected)


def test_p2_without_strength_is_the_plain_error_of_eps():
    path = LinearPath().coefficients(torch.linspace(0.01, 0.99, 99))
    torch.testing.assert_close(P2(gamma=0.0).weight(path, Epsilon()), torch.ones(99))


@names
@pytest.mark.parametrize(
    "weighting", [Constant(), VelocityError(), MinSNR(), P2(), P2(1.0, 0.5), P2(1.0, 2.0)], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_weight_is_finite_from_end_to_end(weighting, parameterization, dtype):
    for schedule in PATHS:
        weight = weighting.weight(schedule.coefficients(torch.linspace(0, 1, 1001, dtype=dtype)), parameterization)
        assert weight.dtype == dtype and weight.shape == (1001,)
        assert weight.isfinite().all() and (weight >= 0).all()
    assert isinstance(weighting, Weighting)


@names
@pytest.mark.parametrize("weighting", [MinSNR(), P2()], ids=repr)
def test_weights_reach_their_ends_smoothly(weighting, parameterization):
    for schedule in PATHS[:2]:
        t = torch.tensor([0.0, 1e-7, 1 - 1e-7, 1.0], dtype=torch.float64)
        weight = weighting.weight(schedule.coefficients(t), parameterization)
        torch.testing.assert_close(weight[[0, 3]], weight[[1, 2]], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MinSNR(0.0), "gamma=0"),
        (lambda: MinSNR(5.0, -1.0), "min_weight=-1"),
        (lambda: P2(0.0), "k=0"),
        (lambda: P2(1.0, -1.0), "gamma=-1"),
    ],
)
def test_what_is_out_of_range_is_named(make, key):
    with pytest.raises(UserError, match=rf"objective\.weighting\.{key}"):
        make()


@pytest.mark.parametrize("bound", [0.0, -1.0, 1.5])
def test_the_bound_lies_above_zero_and_up_to_one(bound):
    with pytest.raises(UserError, match=r"objective.weighting.min_sigma"):
        VelocityError(bound)
