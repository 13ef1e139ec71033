"""Stops a training whose loss is NaN or infinite, before its checkpoint overwrites a good one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.data.names import shown
from vidlab.errors import UserError
from vidlab.training.finiteness import all_finite, diverged, refuse_if_diverged

# The last two are those of an autoencoder's adversary.
WATCHED = ("train/loss", "train/grad_norm", "train/discriminator", "train/discriminator_grad_norm")
# Scales begin at 2^16 and halve at each: 2^-16 is left.
MOST_OVERFLOWS = 32
LISTED = 5


class FiniteLoss(Callback):
    """Looks at losses and gradient norms of training every ``every_n_steps`` optimizer steps and after the last.

    It also looks before every checkpoint, at the gradients too, those that wait for more among them, so that none of a
    training that has diverged takes the place of a good one. (``LastCheckpoint`` looks at the weights.)

    With a loss scaler (``precision=16-mixed``) gradients that overflow are part of training: the scaler drops their
    steps. Only losses are looked at there, and ``MOST_OVERFLOWS`` dropped steps in a row, after which no scale helps.

    Where the module returns the loss of each clip (``per_clip``), the message names those of the first batch whose loss
    was not finite: all of a batch point to the weights, some to these clips.

    Args:
        every_n_steps: interval in optimizer steps; reading the loss waits for the device.

    Raises:
        UserError: one of them is infinite or not a number, or every step is dropped.
    """

    def __init__(self, every_n_steps: int = 5) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.finite_loss.every_n_steps={every_n_steps} must be at least 1.")
        self.every_n_steps = every_n_steps
        self._seen: list[tuple[Sequence[str], Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any = None, batch: Any = None, batch_idx: int = 0
    ) -> None:
        """Remember which clips' losses are finite, without waiting for the device; look at the interval."""
        if isinstance(outputs, Mapping) and isinstance(batch, ClipBatch) and "per_clip" in outputs:
            self._seen.append((batch.keys, outputs["per_clip"].isfinite()))
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        broken = _broken(trainer)
        if broken:
            raise diverged(trainer, broken, self._first_clips())
        self._seen.clear()

    def _first_clips(self) -> str:
        """The clips of the first batch since the last look of which some loss was not finite, in a sentence."""
        for keys, finite in self._seen:
            broken = [shown(key) for key, fine in zip(keys, finite.tolist(), strict=True) if not fine]
            if broken:
                more = ", ..." if len(broken) > LISTED else ""
                return (
                    f"First without a finite loss: {len(broken)} of the {len(keys)} clips of a batch, "
                    f"{', '.join(broken[:LISTED])}{more}."
                )
        return ""

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
        refuse_if_diverged(trainer, broken, self._first_clips() if broken else "")


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _broken(trainer: Trainer) -> list[str]:
    watched = WATCHED if _scaler(trainer) is None else [name for name in WATCHED if not name.endswith("grad_norm")]
    values = {name: float(trainer.callback_metrics.get(name, 0.0)) for name in watched}
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    dropped = getattr(trainer.precision_plugin, "skipped_in_a_row", 0)
    return [*broken, f"gradients overflowed {dropped} times in a row"] if dropped >= MOST_OVERFLOWS else broken
