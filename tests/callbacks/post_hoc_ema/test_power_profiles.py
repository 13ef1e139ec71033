"""Power-function averages: published values, numeric integrals, and any length from two."""

import itertools
import math

import pytest
import torch

from vidlab.callbacks.post_hoc_ema.profiles import (
    Snapshot,
    combination,
    decay_at,
    exponent_of,
    length_of,
    overlaps,
)
from vidlab.errors import UserError


def weighting(one: Snapshot, places: torch.Tensor) -> torch.Tensor:
    """Eq. 1 written out."""
    gamma = exponent_of(one.sigma_rel)
    return torch.where(places <= one.step, (gamma + 1) * places**gamma / one.step ** (gamma + 1), 0.0)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (12**-0.5, 0.0)])
def test_the_exponents_of_lengths_as_published(sigma_rel, gamma):
    assert exponent_of(sigma_rel) == pytest.approx(gamma, abs=0.005)
    assert length_of(exponent_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


def test_a_length_is_the_standard_deviation_of_the_weighting():
    places = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = weighting(Snapshot(0.08, 1), places) / 200_000
    mean = (weight * places).sum()
    assert float(weight.sum()) == pytest.approx(1, rel=1e-8)
    assert math.sqrt(float((weight * (places - mean) ** 2).sum())) == pytest.approx(0.08, rel=1e-6)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_that_cannot_be(length):
    with pytest.raises(UserError, match="sigma_rel"):
        exponent_of(length)


def test_overlaps_are_the_integrals_of_products():
    found = [Snapshot(0.05, 100), Snapshot(0.10, 100), Snapshot(0.20, 60), Snapshot(0.05, 30)]
    places = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 400
    by_hand = [[float((weighting(a, places) * weighting(b, places)).sum() / 400) for b in found] for a in found]
    torch.testing.assert_close(overlaps(found, found), torch.tensor(by_hand).double(), rtol=1e-4, atol=1e-9)


def test_two_overlaps_by_hand():
    flat, other = Snapshot(12**-0.5, 2), Snapshot(12**-0.5, 4)  # 1/2 up to 2, and 1/4 up to 4
    expected = torch.tensor([[0.5, 0.25], [0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(overlaps([flat, other], [flat, other]), expected)


def test_the_decay_gives_each_step_its_share_of_the_weighting():
    gamma, steps = 2.0, 7
    shares = [0.0] * steps
    for step in range(1, steps + 1):
        beta = decay_at(step, gamma)
        shares = [beta * one for one in shares]
        shares[step - 1] += 1 - beta
    assert shares == pytest.approx([(k**3 - (k - 1) ** 3) / steps**3 for k in range(1, steps + 1)])


def test_a_stored_length_is_itself_and_factors_add_up_to_one():
    stored = [Snapshot(s, t) for t, s in itertools.product((50, 100, 150, 200), (0.05, 0.10))]
    factors = combination(stored, stored[-1])
    assert factors == pytest.approx([0.0] * 7 + [1.0], abs=1e-9)
    assert sum(combination(stored, Snapshot(0.08, 200))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.20])
def test_any_length_from_two_equals_the_one_tracked_beside_them(length, dtype):
    """Weights as in training: they drift and shake. 40 snapshots of two lengths, the wanted one tracked as well."""
    draw = torch.Generator().manual_seed(3)
    steps, every, size = 2000, 50, 64
    kept = {s: torch.zeros(size, dtype=dtype) for s in (0.05, 0.10, length)}
    exponents = {s: exponent_of(s) for s in kept}
    start, end = torch.randn(2, size, generator=draw, dtype=torch.float64)
    stored: dict[Snapshot, torch.Tensor] = {}
    for step in range(1, steps + 1):
        shake = 0.1 * torch.randn(size, generator=draw, dtype=torch.float64)
        weights = (end + (start - end) * math.exp(-3 * step / steps) + shake).to(dtype)
        for s, average in kept.items():
            average.lerp_(weights, 1 - decay_at(step, exponents[s]))
        if step % every == 0:
            stored |= {Snapshot(s, step): kept[s].clone() for s in (0.05, 0.10)}
    factors = combination(list(stored), Snapshot(length, steps))
    made = sum(factor * average.double() for factor, average in zip(factors, stored.values(), strict=True))
    assert float((made - kept[length]).norm() / kept[length].norm()) < 1e-3


def test_an_average_needs_snapshots_up_to_its_step():
    with pytest.raises(UserError, match="at least one"):
        combination([], Snapshot(0.1, 5))
    with pytest.raises(UserError, match="up to that step"):
        combination([Snapshot(0.1, 6)], Snapshot(0.1, 5))
