"""Checks that the buckets of the data fit the model, and watches how many tokens a step has."""

import logging
from collections import Counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from vidlab.clip import LatentShape
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.bucketed import BucketedPlan
from vidlab.data.samplers.buckets import Bucketing
from vidlab.errors import UserError
from vidlab.parallel.ranks import data_ranks
from vidlab.training.module import ClipModule

log = logging.getLogger(__name__)


class TokenBucketing(Callback):
    """Refuses buckets the autoencoder and the denoiser cannot take, and logs tokens and shapes of the steps.

    Tokens are those the denoiser processes, latent positions where an autoencoder is trained, of all ranks together.
    Data without ``data.bucketing`` has one bucket.

    Args:
        every_n_steps: interval in batches, at least 1.

    Logs:
        tokens/per_step_mean, tokens/per_step_min, tokens/per_step_max: over the interval.
        tokens/variation: 1 - min / max over the interval.
        buckets/<frames>x<height>x<width>: share of the interval's steps of that shape.

    Raises:
        UserError: in setup, a bucket in use that does not fit.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.token_bucketing.every_n_steps={every_n_steps}: it must be 1 or more")
        self.every_n_steps = every_n_steps
        self._shapes: Counter[tuple[str, int]] = Counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check every bucket in use against the strides of the model."""
        if not isinstance(pl_module, ClipModule):
            raise TypeError("TokenBucketing counts the tokens of a ClipModule")
        data = getattr(trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, ClipDataModule) or data.bucketing.max_tokens is None:
            return
        planned = data.planned(data_ranks(trainer).size)
        check_buckets(planned, pl_module)
        _announce(planned)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; log and start anew at the interval."""
        assert isinstance(pl_module, ClipModule)
        bucket = Bucket(*batch.size)
        tokens = len(batch) * data_ranks(trainer).size * tokens_of(bucket, pl_module)
        self._shapes[str(bucket), tokens] += 1
        if self._shapes.total() < self.every_n_steps:
            return
        found = statistics(self._shapes)
        self._shapes.clear()
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)


def statistics(shapes: Counter[tuple[str, int]]) -> dict[str, float]:
    """The logged numbers of the batches counted by (bucket, tokens)."""
    steps = shapes.total()
    tokens = [number for _, number in shapes]
    found = {
        "tokens/per_step_mean": sum(number * count for (_, number), count in shapes.items()) / steps,
        "tokens/per_step_min": float(min(tokens)),
        "tokens/per_step_max": float(max(tokens)),
        "tokens/variation": 1 - min(tokens) / max(tokens),
    }
    for (bucket, _), count in shapes.items():
        found[f"buckets/{bucket}"] = found.get(f"buckets/{bucket}", 0.0) + count / steps
    return found


def tokens_of(bucket: Bucket, module: ClipModule) -> int:
    """Tokens that the denoiser processes for one clip of a bucket."""
    shape = module.autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)
    return module.token_count(LatentShape(*shape))


def check_buckets(planned: BucketedPlan, module: ClipModule) -> None:
    """Refuse the first bucket in use that does not divide into the model's tokens.

    Raises:
        UserError: with the settings at fault and what they must be.
    """
    stride = module.autoencoder.stride
    patch = module.patch
    needed = tuple(step * size for step, size in zip((stride.frames, stride.height, stride.width), patch, strict=True))
    for bucket in planned.assignment.buckets:
        _check_space(bucket, needed[1:], planned.bucketing)
        _check_time(bucket, patch[0], module, planned.bucketing)


def _check_space(bucket: Bucket, needed: tuple[int, ...], bucketing: Bucketing) -> None:
    if bucket.height % needed[0] or bucket.width % needed[1]:
        raise UserError(
            f"data.bucketing.stride={bucketing.stride}: bucket {bucket} (frames x height x width) does not divide into "
            f"the model's tokens of {needed[0]} x {needed[1]} pixels (autoencoder's stride x patch). It must be a "
            f"multiple of {needed[0]} and of {needed[1]}"
        )


def _check_time(bucket: Bucket, patch: int, module: ClipModule, bucketing: Bucketing) -> None:
    kind = "1 + n * " if bucketing.first_frame_alone else "n * "
    now = f"data.bucketing.temporal_stride={bucketing.temporal_stride}, first_frame_alone={bucketing.first_frame_alone}"
    try:
        frames = module.autoencoder.latent_shape(bucket.frames, bucket.height, bucket.width)[1]
    except UserError as error:
        raise UserError(
            f"{now}: bucket {bucket} has {kind}{bucketing.temporal_stride} frames, which "
            f"{type(module.autoencoder).__name__}, of stride {module.autoencoder.stride.frames}, does not take"
        ) from error
    if frames % patch:
        raise UserError(
            f"{now}, latent_multiple={bucketing.latent_multiple}: bucket {bucket} gives {frames} latent frames, and "
            f"the model's patch is {patch}. Set data.bucketing.latent_multiple={patch}"
        )


@rank_zero_only
def _announce(planned: BucketedPlan) -> None:
    balance, plan = planned.balance, planned.plan
    log.info(
        "%d buckets, %d steps an epoch; tokens of two steps differ by %.1f %% at most; %d clips dropped "
        "(python -m vidlab plan shows them)",
        len(planned.assignment.buckets),
        plan.steps_per_epoch,
        100 * balance.bound,
        sum(planned.dropped.values()),
    )
