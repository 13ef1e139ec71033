import itertools
import math

import pytest
import torch

from vidlab.diffusion.betas import LinearBetas, ZeroTerminalSNR
from vidlab.diffusion.schedules import LinearPath, VariancePreserving
from vidlab.errors import UserError
from vidlab.sampling.spacings import Karras, Leading, Linspace, Spacing, Trailing

DDPM = VariancePreserving(LinearBetas())
ZERO_SNR = VariancePreserving(ZeroTerminalSNR(LinearBetas()))


def steps_of(times: list[float]) -> list[float]:
    """Numbers of DDPM's steps."""
    return [1000 * t - 1 for t in times[:-1]]


def test_the_published_table():
    # Lin et al. 2023, table 2: T = 1000 and 10 steps, counted from 1
    assert steps_of(Leading().times(10, DDPM)) == pytest.approx([900, 800, 700, 600, 500, 400, 300, 200, 100, 0])
    assert steps_of(Linspace().times(10, DDPM)) == pytest.approx([999, 888, 777, 666, 555, 444, 333, 222, 111, 0])
    assert steps_of(Trailing().times(10, DDPM)) == pytest.approx([999, 899, 799, 699, 599, 499, 399, 299, 199, 99])


@pytest.mark.parametrize("spacing", [Trailing(), Leading(), Linspace(), Karras(), Karras(3.0, 0.01, 20.0)], ids=repr)
@pytest.mark.parametrize("steps", [2, 3, 7, 50, 250])
def test_levels_fall_to_data(spacing, steps):
    times = spacing.times(steps, DDPM)
    assert isinstance(spacing, Spacing) and len(times) == steps + 1
    assert 0 < times[0] <= 1 and times[-1] == 0
    assert all(t > s for t, s in itertools.pairwise(times))


def test_karras_by_hand():
    # rho = 2 from 9 to 1 in three steps: square roots 3, 2, 1; on the linear path t = r / (1 + r)
    assert Karras(2.0, 1.0, 9.0).times(3, LinearPath()) == pytest.approx([0.9, 0.8, 0.5, 0])
    assert Karras(2.0, 1.0, 9.0).times(1, LinearPath()) == pytest.approx([0.9, 0])


def test_karras_takes_the_ends_of_the_schedule():
    times = Karras().times(5, DDPM)
    assert times[0] == pytest.approx(1) and times[-2] == pytest.approx(1e-3)
    path = DDPM.coefficients(torch.tensor(times[:-1], dtype=torch.float64))
    roots = (path.sigma / path.alpha) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(4))


@pytest.mark.parametrize("schedule", [LinearPath(), ZERO_SNR], ids=lambda s: type(s).__name__)
def test_karras_starts_at_80_where_there_is_no_signal(schedule):
    assert Karras().times(5, schedule) == Karras(sigma_max=80.0).times(5, schedule)
    assert Karras().times(5, schedule)[0] < 1
    assert math.isclose(Karras().times(5, LinearPath())[0], 80 / 81)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Leading(0), r"sampler\.spacing\.grid=0"),
        (lambda: Linspace(-1), r"sampler\.spacing\.grid=-1"),
        (lambda: Leading(10).times(11, DDPM), r"sampler\.steps=11 exceeds the 10"),
        (lambda: Linspace(10).times(11, DDPM), r"sampler\.steps=11 exceeds the 10"),
        (lambda: Linspace().times(1, DDPM), r"sampler\.steps=1: .*Trailing"),
        (lambda: Karras(0.0), r"sampler\.spacing\.rho=0"),
        (lambda: Karras(sigma_min=0.0), r"sampler\.spacing\.sigma_min=0"),
        (lambda: Karras(sigma_max=math.inf), r"sampler\.spacing\.sigma_max=inf"),
        (lambda: Karras(sigma_max=200.0).times(4, DDPM), r"sigma_max=200.0 is above .* 157"),
        (lambda: Karras(7.0, 2.0, 1.0).times(4, DDPM), r"sigma_min=2 must be below sigma_max=1"),
    ],
)
def test_what_cannot_be_spaced_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
