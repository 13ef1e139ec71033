import math

import pytest
import torch

from vidlab.diffusion.time_samplers import DiscreteUniform, LogitNormal, RankStratified, TimeSampler, Uniform
from vidlab.errors import UserError

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


def test_discrete_levels_are_those_of_the_steps():
    u = torch.tensor([0.0, 0.2499, 0.25, 0.6, 0.9999])
    assert DiscreteUniform(4).from_uniform(u).tolist() == [0.25, 0.25, 0.5, 0.75, 1]
    for dtype in (torch.float32, torch.float64):
        last = 1 - torch.finfo(dtype).eps / 2
        assert DiscreteUniform(999_983).from_uniform(torch.tensor([0.0, last], dtype=dtype))[1] == 1


def test_every_discrete_level_is_equally_likely():
    t = DiscreteUniform(5).from_uniform(torch.arange(1000) / 1000)
    assert [(t == level).sum().item() for level in t.unique()] == [200] * 5


def test_at_least_one_level():
    with pytest.raises(UserError, match=r"objective\.time_sampler: steps=0"):
        DiscreteUniform(0)


def test_strata_outside_distributed_training_are_the_base():
    u = torch.rand(7)
    assert torch.equal(RankStratified(DiscreteUniform(10)).from_uniform(u), DiscreteUniform(10).from_uniform(u))
    assert all(isinstance(sampler, TimeSampler) for sampler in (DiscreteUniform(), RankStratified(Uniform())))


def test_every_rank_has_its_own_share(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    seen = []
    for rank in range(4):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        t = RankStratified(Uniform()).from_uniform(u)
        assert rank / 4 <= t[0] and t[1].item() == (rank + 0.5) / 4 and t[2] < 1
        # Open-Sora Plan: round(U(T r/n - 1/2, T (r+1)/n - 1/2)) is the step floor(T (r + u) / n)
        levels = RankStratified(DiscreteUniform(8)).from_uniform(torch.linspace(0, 0.999, 100))
        seen.append((levels * 8 - 1).unique().tolist())
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]]
