"""Counting optimizer steps: those that were taken, and every so many of them once."""

from typing import Any

from lightning.pytorch import Trainer


def steps_taken(trainer: Trainer) -> int:
    """Optimizer steps that may have changed the weights: ``global_step`` less those that callbacks or a scaler left."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    dropped = sum(getattr(callback, "discarded_steps", 0) for callback in callbacks)
    return trainer.global_step - dropped - getattr(trainer.precision_plugin, "skipped_steps", 0)


class StepInterval:
    """Says once for each multiple of ``every_n_steps`` optimizer steps that it has been reached.

    ``Trainer.global_step`` stands still while the batches of a step accumulate, so that a test of it alone holds for
    each of them; it is 0 before the first step, which is no multiple. Of an interval of None nothing is ever due.
    """

    def __init__(self, every_n_steps: int | None) -> None:
        self.every_n_steps = every_n_steps
        self._seen: int | None = None

    def start(self, step: int) -> None:
        """A training begins, or goes on, at a step, which is not due."""
        self._seen = step

    def due(self, step: int) -> bool:
        """Whether the batch that has just ended, after so many steps, completed one at which something is due."""
        if step == (0 if self._seen is None else self._seen):
            return False
        self._seen = step
        return self.every_n_steps is not None and step % self.every_n_steps == 0
