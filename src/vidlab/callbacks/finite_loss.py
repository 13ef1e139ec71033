"""A training whose loss is no longer a number is ended, before its checkpoint overwrites a good one."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from vidlab.errors import UserError

# The last two are those of an autoencoder's adversary.
WATCHED = ("train/loss", "train/grad_norm", "train/discriminator", "train/discriminator_grad_norm")


class FiniteLoss(Callback):
    """Looks at losses and gradient norms of training every ``every_n_steps`` optimiser steps and after the last.

    Checkpoints are written after every other callback of a step, so those written at multiples of
    ``every_n_steps`` are of finite weights.

    Args:
        every_n_steps: interval in optimiser steps; reading the loss waits for the device.

    Raises:
        UserError: one of them is infinite or not a number.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.finite_loss.every_n_steps={every_n_steps} must be at least 1.")
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Look at the interval."""
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        values = {name: float(trainer.callback_metrics.get(name, 0.0)) for name in WATCHED}
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            return
        rate = trainer.optimizers[0].param_groups[0]["initial_lr"]
        raise UserError(
            f"{' and '.join(broken)} at step {trainer.global_step}: the training has diverged. Lower "
            f"optimizer.lr={rate:g}, set optimizer.clip_norm, or warm up longer (lr_schedule.warmup_steps). "
            "Checkpoints of earlier steps are intact."
        )
