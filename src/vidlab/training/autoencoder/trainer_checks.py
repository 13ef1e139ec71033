"""Settings of the Trainer and of the data that adversarial training cannot work with, refused before it computes."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from vidlab.errors import UserError
from vidlab.perceptual.lpips import LPIPS
from vidlab.training.autoencoder.perceptual import check_size


def check_accumulation_and_clipping(trainer: Trainer) -> None:
    """Refuse what Lightning leaves to modules with two optimizers.

    Raises:
        UserError: naming the setting that does the same here.
    """
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: two optimizers take turns "
            f"here. Use task.accumulate={trainer.accumulate_grad_batches}."
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: two optimizers take turns here. Use "
            "optimizer.clip_norm and task.discriminator_optimizer.clip_norm."
        )


def check_data(data: Any, perceptual: LPIPS | None, measures_latents: bool) -> None:
    """Refuse data that the losses or the latent scale cannot use.

    Args:
        data: the DataModule, or None.
        perceptual: the LPIPS network.
        measures_latents: whether the scale of the latents is measured on held-out clips.

    Raises:
        UserError: buckets too small for LPIPS, or no held-out clips.
    """
    if perceptual is not None and hasattr(data, "plan"):
        for stats in data.plan.stats:
            check_size(perceptual, stats.bucket.height, stats.bucket.width)
    if measures_latents and getattr(data, "val_clips", 1) == 0:
        raise UserError(
            "data.val_clips=0: the scale of the latents is measured on held-out clips. Hold some out, or set "
            "task.latent_scale=keep."
        )


def check_precision_and_strategy(trainer: Trainer) -> None:
    """Refuse a precision that scales gradients, and DDP that waits for unused ones.

    Raises:
        UserError: naming the value to use.
    """
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UserError(
            f"precision={trainer.precision} scales gradients, which clipping here cannot see through. Use "
            "precision=bf16-mixed or precision=32-true."
        )
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise UserError(
            "trainer.strategy: a step trains one of two networks, and DDP would wait for the gradients of the "
            "other. Use trainer.strategy=ddp_find_unused_parameters_true."
        )
