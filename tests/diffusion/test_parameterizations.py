import math

import pytest
import torch

from vidlab.diffusion.betas import CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from vidlab.diffusion.parameterizations import (
    Epsilon,
    Parameterization,
    Velocity,
    VPrediction,
    X0Prediction,
    determinant_of,
    noised,
)
from vidlab.diffusion.schedules import LinearPath, PathCoefficients, VariancePreserving

ALL = [Velocity(), VPrediction(), Epsilon(), X0Prediction()]
names = pytest.mark.parametrize("parameterization", ALL, ids=lambda p: p.name)


def cosine_path(angle: torch.Tensor) -> PathCoefficients:
    """A variance-preserving path whose time is the angle: alpha = cos, sigma = sin."""
    return PathCoefficients(angle.cos(), angle.sin(), -angle.sin(), angle.cos())


def wide(value: float | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("parameterization", "target"),
    # x0 = 2, eps = -1 at t = 1/4: z = 3/4 * 2 - 1/4, u = eps - x0, v = 3/4 * (-1) - 1/4 * 2
    [(Velocity(), -3.0), (VPrediction(), -1.25), (Epsilon(), -1.0), (X0Prediction(), 2.0)],
    ids=lambda x: getattr(x, "name", x),
)
def test_targets_by_hand(parameterization, target):
    path = LinearPath().coefficients(wide(0.25))
    x0, epsilon = wide(2.0), wide(-1.0)
    z = noised(x0, epsilon, path)
    assert z.item() == 1.25
    assert parameterization.target(x0, epsilon, path).item() == target
    back = parameterization.denoised(wide(target), z, path)
    assert (back.x0.item(), back.epsilon.item()) == pytest.approx((2, -1), abs=1e-12)


PATHS = {
    "linear": LinearPath(),
    "ddpm": VariancePreserving(LinearBetas()),
    "stable": VariancePreserving(ScaledLinearBetas()),
    "cosine": VariancePreserving(CosineBetas()),
    "zero_snr": VariancePreserving(ZeroTerminalSNR(LinearBetas())),
}
schedules = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS.keys())


def round_trip(parameterization, schedule, dtype) -> tuple[torch.Tensor, torch.Tensor, PathCoefficients]:
    """Errors of x0 and eps over 1001 levels, where they are defined, and the path there."""
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    path = schedule.coefficients(t)
    defined = parameterization.x0_gain(path).isfinite() & parameterization.epsilon_gain(path).isfinite()
    # eps cannot be read from x0 at t = 0, nor x0 from eps where alpha = 0
    assert defined[1:-1].all()
    path = schedule.coefficients(t[defined])
    x0, epsilon = torch.randn(2, len(path.alpha), 2, 1, 2, 2, dtype=dtype)
    wide = path.like(x0)
    back = parameterization.denoised(
        parameterization.target(x0, epsilon, wide), noised(x0, epsilon, wide), wide
    )  # fmt: skip
    errors = [(found - true).abs().amax(dim=(1, 2, 3, 4)) for found, true in ((back.x0, x0), (back.epsilon, epsilon))]
    return errors[0], errors[1], path


@names
@schedules
def test_denoised_inverts_target_over_the_whole_path(parameterization, schedule):
    x0, epsilon, _ = round_trip(parameterization, schedule, torch.float64)
    assert x0.max() < 1e-6 and epsilon.max() < 1e-6


@names
@schedules
def test_single_precision_is_as_good_as_the_gain_allows(parameterization, schedule):
    # z is known to 1e-7 of its size, and an error of z counts 1 / alpha in x0 predicted by eps, 1 / sigma the other way
    x0, epsilon, path = round_trip(parameterization, schedule, torch.float32)
    assert (x0 / parameterization.x0_gain(path).clamp(min=1)).max() < 5e-6
    assert (epsilon / parameterization.epsilon_gain(path).clamp(min=1)).max() < 5e-6


@names
def test_gains_are_the_errors_of_what_is_recovered(parameterization):
    for schedule in PATHS.values():
        path = schedule.coefficients(torch.tensor([0.2, 0.7], dtype=torch.float64))
        z, prediction = torch.randn(2, 2, 1, 1, 1, 1, dtype=torch.float64)
        wide = path.like(z)
        right, wrong = (parameterization.denoised(prediction + e, z, wide) for e in (0, 1))
        gains = parameterization.x0_gain(path), parameterization.epsilon_gain(path)
        torch.testing.assert_close((wrong.x0 - right.x0).abs().flatten(), gains[0])
        torch.testing.assert_close((wrong.epsilon - right.epsilon).abs().flatten(), gains[1])
        a, b = parameterization.mix(wide)
        torch.testing.assert_close(parameterization.target(z, prediction, wide), a * z + b * prediction)
    assert isinstance(parameterization, Parameterization)


def test_where_nothing_can_be_recovered_the_gain_is_infinite():
    ends = PATHS["zero_snr"].coefficients(torch.tensor([0.0, 1.0]))
    assert Epsilon().x0_gain(ends).tolist() == [0, math.inf] and Epsilon().epsilon_gain(ends).tolist() == [1, 1]
    assert X0Prediction().x0_gain(ends).tolist() == [1, 1] and X0Prediction().epsilon_gain(ends).tolist() == [
        math.inf,
        0,
    ]
    for parameterization in (Velocity(), VPrediction()):
        assert parameterization.x0_gain(ends).isfinite().all() and parameterization.epsilon_gain(ends).isfinite().all()


def test_v_of_pure_noise_is_minus_x0():
    path = PATHS["zero_snr"].coefficients(wide(1.0))
    assert VPrediction().target(wide(2.0), wide(-1.0), path).item() == -2


@pytest.mark.parametrize("parameterization", [Velocity(), VPrediction()], ids=lambda p: p.name)
def test_both_ends_are_exact_in_single_precision(parameterization):
    path = LinearPath().coefficients(torch.tensor([0.0, 1.0]))
    x0, epsilon = torch.randn(2, 2, 3, 2, 4, 4)
    path = path.like(x0)
    back = parameterization.denoised(parameterization.target(x0, epsilon, path), noised(x0, epsilon, path), path)
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.epsilon, epsilon, rtol=0, atol=1e-6)


def test_the_determinant_is_one_where_the_docstring_says_so():
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    for path, parameterization in (
        (LinearPath().coefficients(t), Velocity()),
        (cosine_path(t * math.pi / 2), VPrediction()),
    ):
        torch.testing.assert_close(determinant_of(parameterization, path), torch.ones_like(t))


def test_v_is_the_velocity_of_the_variance_preserving_path_in_its_angle():
    # Salimans & Ho 2022, section 4: v = dz / d(angle)
    x0, epsilon = torch.randn(2, 5, 3, 1, 2, 2, dtype=torch.float64)
    angle = torch.linspace(0.1, 1.4, 5, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    h = 1e-6
    slope = (noised(x0, epsilon, cosine_path(angle + h)) - noised(x0, epsilon, cosine_path(angle - h))) / (2 * h)
    torch.testing.assert_close(VPrediction().target(x0, epsilon, cosine_path(angle)), slope, atol=1e-8, rtol=0)
    torch.testing.assert_close(Velocity().target(x0, epsilon, cosine_path(angle)), slope, atol=1e-8, rtol=0)


def test_velocity_of_the_linear_path_is_constant_in_time():
    x0, epsilon = torch.randn(2, 3, 3, 2, 4, 4)
    path = LinearPath().coefficients(torch.tensor([0.0, 0.3, 1.0])).like(x0)
    torch.testing.assert_close(Velocity().target(x0, epsilon, path), epsilon - x0, rtol=0, atol=1e-6)
