"""The optimizer steps that a module takes itself, by hand."""

import pytest
import torch
from torch import nn

from vidlab.errors import UserError
from vidlab.training.autoencoder.gan_step import PATIENCE, GANOptimizerStep
from vidlab.training.optimization.clipping import AdaptiveClipper


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))


def stepped(one: GANOptimizerStep, gradient: tuple[float, float]) -> list[float]:
    """Where a step of SGD with rate 1 leads."""
    optimizer = torch.optim.SGD(one.network.parameters(), lr=1.0)
    one.network.place.grad = torch.tensor(gradient)
    one.step(optimizer, lambda o: o.step(), ["a"])
    assert one.network.place.grad is None
    return one.network.place.tolist()


def test_gradients_are_limited():
    one = GANOptimizerStep("generator", Point(), clip_norm=1.0)
    assert stepped(one, (3.0, 4.0)) == pytest.approx([-0.6, -0.8])
    assert stepped(one, (0.1, 0.0)) == pytest.approx([-0.7, -0.8])
    assert stepped(GANOptimizerStep("generator", Point(), None), (3.0, 4.0)) == [-3.0, -4.0]


def test_outliers_are_left_out_and_counted(caplog):
    one = GANOptimizerStep("generator", Point(), None, AdaptiveClipper())
    assert stepped(one, (1.0, 0.0)) == [-1.0, 0.0]  # the first: ema = variance = 1, so the threshold is now 1 + 3 = 4
    assert stepped(one, (4.1, 0.0)) == [-1.0, 0.0]
    assert "discarded clips a" in caplog.text
    assert stepped(one, (float("nan"), 0.0)) == [-1.0, 0.0]
    assert stepped(one, (2.0, 0.0)) == [-3.0, 0.0]
    assert (one.steps, one.discarded) == (2, 2)
    # 0.99 * 1 + 0.01 * 2; the two outliers are in no statistic
    assert one.statistics.ema == pytest.approx(1.01)


def test_a_training_that_discards_everything_ends():
    one = GANOptimizerStep("discriminator", Point(), None, AdaptiveClipper())
    for _ in range(PATIENCE - 1):
        stepped(one, (float("inf"), 0.0))
    with pytest.raises(UserError, match=r"50 steps of the discriminator in a row.*lower optimizer\.lr"):
        stepped(one, (float("inf"), 0.0))


def test_state_with_gradients_that_wait():
    one = GANOptimizerStep("generator", Point(), None, AdaptiveClipper())
    stepped(one, (1.0, 0.0))
    one.network.place.grad = torch.tensor([5.0, 6.0])
    state, other = one.state(unfinished=True), GANOptimizerStep("generator", Point(), None)
    other.restore(state)
    other.restore_gradients()
    assert other.network.place.grad.tolist() == [5.0, 6.0]
    assert (other.steps, other.statistics) == (1, one.statistics)
    assert not one.state(unfinished=False)["gradients"]
