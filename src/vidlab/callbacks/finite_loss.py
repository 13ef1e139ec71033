"""A training whose loss is no longer a number is ended, before its checkpoint overwrites a good one."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vidlab.callbacks.finiteness import all_finite, diverged, refuse_if_diverged
from vidlab.errors import UserError

# The last two are those of an autoencoder's adversary.
WATCHED = ("train/loss", "train/grad_norm", "train/discriminator", "train/discriminator_grad_norm")
# Scales begin at 2^16 and halve at each: 2^-16 is left.
MOST_OVERFLOWS = 32


class FiniteLoss(Callback):
    """Looks at losses and gradient norms of training every ``every_n_steps`` optimiser steps and after the last.

    It also looks before every checkpoint, at the gradients too, those that wait for more among them, so that none of a
    training that has diverged takes the place of a good one. (``LastCheckpoint`` looks at the weights.)

    With a loss scaler (``precision=16-mixed``) gradients that overflow are part of training: the scaler drops their
    steps. Only losses are looked at there, and ``MOST_OVERFLOWS`` dropped steps in a row, after which no scale helps.

    Args:
        every_n_steps: interval in optimiser steps; reading the loss waits for the device.

    Raises:
        UserError: one of them is infinite or not a number, or every step is dropped.
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
        broken = _broken(trainer)
        if broken:
            raise diverged(trainer, broken)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what has diverged.

        Raises:
            UserError: a loss or a gradient is infinite or not a number.
        """
        if _scaler(trainer) is not None:
            return
        broken = _broken(trainer)
        if not broken and not all_finite(p.grad for p in pl_module.parameters() if p.grad is not None):
            broken = ["a gradient is not finite"]
        refuse_if_diverged(trainer, broken)


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _broken(trainer: Trainer) -> list[str]:
    watched = WATCHED if _scaler(trainer) is None else [name for name in WATCHED if not name.endswith("grad_norm")]
    values = {name: float(trainer.callback_metrics.get(name, 0.0)) for name in watched}
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    dropped = getattr(trainer.precision_plugin, "skipped_in_a_row", 0)
    return [*broken, f"gradients overflowed {dropped} times in a row"] if dropped >= MOST_OVERFLOWS else broken
