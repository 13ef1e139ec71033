"""Validation after the last step, whatever the number of steps."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidateAtEnd(Callback):
    """Asks Lightning to stop at the last step, which makes it validate there even between two intervals."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Request the stop, and with it the validation, at ``trainer.max_steps``."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
