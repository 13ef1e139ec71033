import math

import pytest
import torch

from vidlab.diffusion.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminalSNR
from vidlab.errors import UserError

ALL = [LinearBetas(), ScaledLinearBetas(), CosineBetas(), ZeroTerminalSNR(LinearBetas())]


@pytest.mark.parametrize("betas", ALL, ids=lambda b: type(b).__name__)
def test_a_thousand_betas_in_double_precision(betas):
    values = betas.values()
    assert isinstance(betas, Betas) and values.shape == (1000,) and values.dtype == torch.float64
    assert (values > 0).all() and (values.diff() > 0).float().mean() > 0.99


def test_linear_betas_by_hand():
    assert LinearBetas(3, 0.1, 0.5).values().tolist() == pytest.approx([0.1, 0.3, 0.5])


def test_scaled_linear_betas_by_hand():
    # square roots 0.1, 0.2, 0.3
    assert ScaledLinearBetas(3, 0.01, 0.09).values().tolist() == pytest.approx([0.01, 0.04, 0.09])


@pytest.mark.parametrize(("betas", "signal"), [
    (LinearBetas(1000, 0.00085, 0.012), 0.001579), (ScaledLinearBetas(), 0.004660),
])  # fmt: skip
def test_what_remains_of_the_signal_in_stable_diffusions_tables(betas, signal):
    # AnimateDiff takes the first, Stable Diffusion the second; sigma / alpha is 25.15 and 14.61
    remaining = (1 - betas.values()).prod().item()
    assert remaining == pytest.approx(signal, abs=5e-7)
    assert math.sqrt((1 - remaining) / remaining) == pytest.approx({0.001579: 25.15, 0.004660: 14.61}[signal], abs=5e-3)


def test_cosine_betas_are_ratios_of_the_published_curve():
    # Nichol & Dhariwal 2021, eq. 17 with T = 4 and s = 0.008
    def f(step: int) -> float:
        return math.cos((step / 4 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [1 - f(step) / f(step - 1) for step in (1, 2, 3)] + [0.999]
    assert CosineBetas(4).values().tolist() == pytest.approx(expected)


def test_zero_terminal_snr_of_the_linear_table():
    # computed with the public implementation of the algorithm
    betas = ZeroTerminalSNR(LinearBetas()).values()
    expected = {0: 1e-4, 1: 1.2069e-4, 499: 0.010271, 500: 0.010293, 900: 0.029134, 997: 0.559589, 998: 0.752267}
    for step, value in expected.items():
        assert betas[step].item() == pytest.approx(value, rel=1e-4)
    assert betas[999] == 1
    assert (1 - betas).cumprod(0)[500].item() == pytest.approx(0.075246, rel=1e-5)


@pytest.mark.parametrize("betas", ALL[:3], ids=lambda b: type(b).__name__)
def test_zero_terminal_snr_ends_in_noise_and_keeps_the_first_step(betas):
    changed = ZeroTerminalSNR(betas).values()
    assert changed[0].item() == pytest.approx(betas.values()[0].item(), rel=1e-10)
    assert (1 - changed).cumprod(0)[-1] == 0
    torch.testing.assert_close(ZeroTerminalSNR(ZeroTerminalSNR(betas)).values(), changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearBetas(1), "steps=1 must be at least 2"),
        (lambda: ScaledLinearBetas(0), "steps=0"),
        (lambda: CosineBetas(1), "steps=1"),
        (lambda: LinearBetas(10, 0.02, 1e-4), "first=0.02 and last=0.0001"),
        (lambda: LinearBetas(10, 0.0, 0.1), "first=0.0"),
        (lambda: ScaledLinearBetas(10, 0.1, 1.0), "last=1.0"),
        (lambda: CosineBetas(10, offset=-1), "offset=-1"),
        (lambda: CosineBetas(10, max_beta=1.0), "max_beta=1.0"),
    ],
)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=r"objective\.schedule\.betas: .*" + message.replace(".", r"\.")):
        make()
