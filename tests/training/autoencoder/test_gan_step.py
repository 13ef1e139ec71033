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


def played(player: GANOptimizerStep, gradient: tuple[float, float]) -> list[float]:
    """Where a step of SGD with rate 1 leads."""
    optimizer = torch.optim.SGD(player.network.parameters(), lr=1.0)
    player.network.place.grad = torch.tensor(gradient)
    player.step(optimizer, lambda o: o.step(), ["a"])
    assert player.network.place.grad is None
    return player.network.place.tolist()


def test_gradients_are_limited():
    player = GANOptimizerStep("generator", Point(), clip_norm=1.0)
    assert played(player, (3.0, 4.0)) == pytest.approx([-0.6, -0.8])
    assert played(player, (0.1, 0.0)) == pytest.approx([-0.7, -0.8])
    assert played(GANOptimizerStep("generator", Point(), None), (3.0, 4.0)) == [-3.0, -4.0]


def test_outliers_are_left_out_and_counted(caplog):
    player = GANOptimizerStep("generator", Point(), None, AdaptiveClipper())
    assert played(player, (1.0, 0.0)) == [-1.0, 0.0]  # the first: ema = variance = 1, so the threshold is now 1 + 3 = 4
    assert played(player, (4.1, 0.0)) == [-1.0, 0.0]
    assert "discarded clips a" in caplog.text
    assert played(player, (float("nan"), 0.0)) == [-1.0, 0.0]
    assert played(player, (2.0, 0.0)) == [-3.0, 0.0]
    assert (player.steps, player.discarded) == (2, 2)
    # 0.99 * 1 + 0.01 * 2; the two outliers are in no statistic
    assert player.statistics.ema == pytest.approx(1.01)


def test_a_training_that_discards_everything_ends():
    player = GANOptimizerStep("discriminator", Point(), None, AdaptiveClipper())
    for _ in range(PATIENCE - 1):
        played(player, (float("inf"), 0.0))
    with pytest.raises(UserError, match=r"50 steps of the discriminator in a row.*lower optimizer\.lr"):
        played(player, (float("inf"), 0.0))


def test_state_with_gradients_that_wait():
    player = GANOptimizerStep("generator", Point(), None, AdaptiveClipper())
    played(player, (1.0, 0.0))
    player.network.place.grad = torch.tensor([5.0, 6.0])
    state, other = player.state(unfinished=True), GANOptimizerStep("generator", Point(), None)
    other.restore(state)
    other.restore_gradients()
    assert other.network.place.grad.tolist() == [5.0, 6.0]
    assert (other.steps, other.statistics) == (1, player.statistics)
    assert not player.state(unfinished=False)["gradients"]
