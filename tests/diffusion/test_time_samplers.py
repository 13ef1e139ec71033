import math

import pytest
import torch

from vidlab.diffusion.time_samplers import LogitNormal, Uniform

# the quantile of a standard normal at u, from tables: Phi(1) = 0.841345
U = torch.tensor([0.5, 0.8413447460685429, 1 - 0.8413447460685429, 0.9772498680518208], dtype=torch.float64)
Z = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5), (-0.5, 2.0)])
def test_quantiles(mean, std):
    expected = 1 / (1 + (-(mean + std * Z)).exp())
    torch.testing.assert_close(LogitNormal(mean, std).from_uniform(U), expected, rtol=0, atol=1e-12)


def test_the_median_and_one_sigma():
    t = LogitNormal().from_uniform(torch.tensor([0.5, 0.841345]))
    assert t.tolist() == pytest.approx([0.5, 0.7310586], abs=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4)])
def test_its_density_is_the_published_one(mean, std):
    # Esser et al. 2024, eq. 19; the density is the slope of u(t), the inverse of from_uniform
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    sampler, h = LogitNormal(mean, std), 1e-6
    t = sampler.from_uniform(u)
    slope = (sampler.from_uniform(u + h) - sampler.from_uniform(u - h)) / (2 * h)
    logit = (t / (1 - t)).log()
    density = (-((logit - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    torch.testing.assert_close(1 / slope, density, rtol=1e-6, atol=0)


def test_the_open_ends_stay_inside():
    t = LogitNormal(0.0, 3.0).from_uniform(torch.tensor([0.0, 1.0]))
    assert 0 < t[0] < 1e-4 and 1 - 1e-4 < t[1] <= 1


def test_uniform_is_the_identity():
    u = torch.rand(5)
    assert torch.equal(Uniform().from_uniform(u), u)
