"""Fault injection: batches with outlying gradients, to test adaptive gradient clipping."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vidlab.clip import ClipBatch, EncodedClips
from vidlab.errors import UserError
from vidlab.randomness import generator

NAME = "callbacks.outlier_batches"


class OutlierBatches(Callback):
    """Multiplies the pixels of some batches, so that their gradients are far too large.

    This stands for what Open-Sora Plan (arXiv 2412.00131, section 3.2) names as causes of loss spikes: abnormal outputs
    of the autoencoder and outliers of the data. Which batches it meets depends on the seed and the batch's number
    alone, so runs that are compared meet the same.

    Args:
        rate: share of batches, in [0, 1].
        scale: factor; a clip in [-1, 1] becomes one in [-scale, scale].
        first: no batch before this one.
        seed: of the choice.

    Logs:
        train/outlier: 1 for a batch that was met, else 0.

    Raises:
        UserError: a setting out of range, or clips that come encoded and have no pixels.
    """

    def __init__(self, rate: float = 0.02, scale: float = 20.0, first: int = 0, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise UserError(f"{NAME}.rate={rate} must lie in [0, 1].")
        if not scale > 0:
            raise UserError(f"{NAME}.scale={scale} must be positive; 1 changes nothing.")
        self.rate, self.scale, self.first, self.seed = rate, scale, first, seed

    def meets(self, number: int) -> bool:
        """Whether the batch of this number is one of them."""
        quantile = torch.rand((), generator=generator(self.seed, "outlier batch", number)).item()
        return number >= self.first and quantile < self.rate

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not isinstance(batch, ClipBatch) or isinstance(batch.content, EncodedClips):
            raise UserError(f"{NAME}: clips that come encoded have no pixels. Set data.cache=null, or {NAME}=null.")
        met = self.meets(batch.number)
        if met:
            batch.pixels.mul_(self.scale)  # kept: bytes become pixels once
        pl_module.log("train/outlier", float(met))
