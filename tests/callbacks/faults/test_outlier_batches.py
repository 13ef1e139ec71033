"""Batches that are outliers on purpose."""

from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from vidlab.callbacks.faults.outlier_batches import OutlierBatches
from vidlab.clip import ClipBatch
from vidlab.errors import UserError


def batch(number: int) -> ClipBatch:
    content = torch.full((1, 3, 4, 2, 2), 255, dtype=torch.uint8)
    return ClipBatch(content, ("a",), ("k",), (0,), number, (8.0,))


def seen(callback: OutlierBatches, number: int) -> tuple[float, float]:
    """The largest pixel after the callback, and what it logged."""
    clips, module = batch(number), MagicMock(spec=LightningModule)
    callback.on_train_batch_start(MagicMock(spec=Trainer), module, clips, 0)
    name, value = module.log.call_args.args
    assert name == "train/outlier"
    return clips.pixels.max().item(), value


def test_the_share_and_the_same_ones_every_time():
    first, again, other = OutlierBatches(0.1, seed=3), OutlierBatches(0.1, seed=3), OutlierBatches(0.1, seed=4)
    met = [number for number in range(2000) if first.meets(number)]
    assert 150 < len(met) < 250 and met == [number for number in range(2000) if again.meets(number)]
    assert met != [number for number in range(2000) if other.meets(number)]
    assert [n for n in range(200) if OutlierBatches(1.0, first=150).meets(n)] == list(range(150, 200))


def test_pixels_are_multiplied():
    callback = OutlierBatches(1.0, scale=20.0, first=5)
    assert seen(callback, 4) == (1.0, 0.0) and seen(callback, 5) == (20.0, 1.0)


@pytest.mark.parametrize("settings", [{"rate": 1.5}, {"rate": -0.1}, {"scale": 0.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=r"callbacks\.outlier_batches\."):
        OutlierBatches(**settings)
