import math

import pytest
import torch

from vidlab.diffusion.parameterizations import Epsilon, Sample, Velocity, VPrediction, noised
from vidlab.diffusion.schedules import LinearPath, PathCoefficients

ALL = [Velocity(), VPrediction(), Epsilon(), Sample()]
names = pytest.mark.parametrize("parameterization", ALL, ids=lambda p: p.name)


def cosine_path(angle: torch.Tensor) -> PathCoefficients:
    """A variance-preserving path whose time is the angle: alpha = cos, sigma = sin."""
    return PathCoefficients(angle.cos(), angle.sin(), -angle.sin(), angle.cos())


def wide(value: float | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("parameterization", "target"),
    # x0 = 2, eps = -1 at t = 1/4: z = 3/4 * 2 - 1/4, u = eps - x0, v = 3/4 * (-1) - 1/4 * 2
    [(Velocity(), -3.0), (VPrediction(), -1.25), (Epsilon(), -1.0), (Sample(), 2.0)],
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


@names
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_denoised_inverts_target_over_the_whole_path(parameterization, kind):
    low = 0.0 if parameterization.name != "x0" else 1e-3  # eps cannot be read from x0 at t = 0
    high = 1.0 if parameterization.name != "epsilon" else 1 - 1e-3  # nor x0 from eps at t = 1
    t = torch.linspace(low, high, 101, dtype=torch.float64)
    path = LinearPath().coefficients(t) if kind == "linear" else cosine_path(t * math.pi / 2)
    x0, epsilon = torch.randn(2, 101, 3, 2, 4, 4, dtype=torch.float64)
    path = path.like(x0)
    z = noised(x0, epsilon, path)
    back = parameterization.denoised(parameterization.target(x0, epsilon, path), z, path)
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.epsilon, epsilon, rtol=0, atol=1e-6)


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
        a, b = parameterization.mix(path)
        torch.testing.assert_close(path.alpha * b - path.sigma * a, torch.ones_like(t))


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
