"""``last.ckpt``: the newest state, at intervals and at the end."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vidlab.errors import UserError


class LastCheckpoint(Checkpoint):
    """Overwrites ``<dirpath>/last.ckpt`` every ``every_n_steps`` optimiser steps and after the last.

    Being a Checkpoint, it runs after every other callback of the step, so their state is that of the step.

    Args:
        dirpath: folder of checkpoints.
        every_n_steps: interval in optimiser steps.
    """

    def __init__(self, dirpath: str, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.checkpoint.every_n_steps={every_n_steps} must be at least 1.")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step a run resumes from is on disk; saving again while gradients accumulate would lose them."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save at the interval, once per optimiser step."""
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step in (0, self._saved_step) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path, weights_only=False)  # the state of training too
