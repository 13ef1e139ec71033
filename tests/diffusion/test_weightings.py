"""Loss weights against hand values."""

import pytest
import torch

from vidlab.diffusion.parameterizations import Sample, Velocity, noised
from vidlab.diffusion.schedules import LinearPath
from vidlab.diffusion.weightings import Constant, VelocityError
from vidlab.errors import UserError


def test_constant_weight_is_one():
    path = LinearPath().coefficients(torch.tensor([0.0, 0.3, 1.0]))
    assert Constant().weight(path).tolist() == [1, 1, 1]


def test_velocity_error_is_one_over_t_squared_on_the_linear_path():
    path = LinearPath().coefficients(torch.tensor([0.1, 0.25, 0.5, 1.0]))
    # 1 / max(t, 0.25)^2
    torch.testing.assert_close(VelocityError(0.25).weight(path), torch.tensor([16.0, 16.0, 4.0, 1.0]))


def test_weighted_x0_error_is_the_error_of_the_implied_velocity():
    generator = torch.Generator().manual_seed(0)
    x0, noise, wrong = torch.randn(3, 2, 1, 2, 2, 2, generator=generator)
    t = torch.tensor([0.3, 0.8])
    path = LinearPath().coefficients(t)
    wide = path.like(x0)
    z = noised(x0, noise, wide)
    implied = Sample().denoised(wrong, z, wide)
    velocity = Velocity().target(implied.x0, implied.epsilon, wide)
    expected = (velocity - Velocity().target(x0, noise, wide)).square()
    weight = VelocityError(0.05).weight(path).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(weight * (wrong - x0).square(), expected)


@pytest.mark.parametrize("bound", [0.0, -1.0, 1.5])
def test_the_bound_lies_above_zero_and_up_to_one(bound):
    with pytest.raises(UserError, match=r"objective.weighting.min_sigma"):
        VelocityError(bound)
