"""Exponential moving average of the trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vidlab.errors import UserError
from vidlab.parallel.shards import local, sharded_like
from vidlab.training.module import SelfAveraged
from vidlab.training.step_interval import steps_taken


def warmed_up_decay(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)): short runs average over about the last tenth of their steps."""
    return min(decay, (1 + step) / (10 + step))


class EMA(Callback):
    """Averages trainable parameters after each optimizer step; validation and previews use the average.

    Frozen parameters, those of regularizers and adversaries are left out, and so are steps of an adversary. The average
    is kept in float32, that of float64 weights in float64, and written to the checkpoint under ``ema``. (Lightning's
    own callback averages and stores frozen parts too, and its flat decay ruins short runs.)

    Args:
        decay: upper bound of the decay; the decay at optimizer step s is min(decay, (1 + s) / (10 + s)). Steps that
            another callback discards do not count.

    Raises:
        UserError: a decay outside [0, 1); a checkpoint whose average is of another model.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} must lie in [0, 1).")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights, or put a restored average on the module's device."""
        current = averaged_parameters(pl_module)
        if not self.average:
            self.average = {name: precise(p).clone() for name, p in current.items()}
        missing = [name for name in current if name not in self.average]
        if missing:
            raise UserError(
                f"The checkpoint's ema lacks {len(missing)} trained weights, such as {missing[0]}: it averaged another "
                "model. Use the settings it was trained with, or callbacks.ema=null."
            )
        self.average = {name: sharded_like(self.average[name], p) for name, p in current.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now a resumed run knows its step: a batch that still accumulates must not average again."""
        self._last_step = averaged_steps(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average once per optimizer step, whatever the gradient accumulation."""
        step = averaged_steps(trainer, pl_module)
        if step == self._last_step:
            return
        self._last_step = step
        weight = 1 - warmed_up_decay(step, self.decay)
        current = averaged_parameters(pl_module)
        with torch.no_grad():
            values = [local(precise(current[name])) for name in self.average]
            torch._foreach_lerp_([local(average) for average in self.average.values()], values, weight)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the average in."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the training weights back, before checkpoints are written."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Never leave the average in place of the training weights."""
        self._swap_out(pl_module)

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Use the average inside the block."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average under ``ema``."""
        checkpoint["ema"] = {name: value.clone() for name, value in self.average.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue a stored average; a checkpoint without one starts from its weights."""
        self.average = dict(checkpoint.get("ema", {}))

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._raw is not None or not self.average:
            return
        current = averaged_parameters(pl_module)
        self._raw = {name: current[name].detach().clone() for name in self.average}
        for name, value in self.average.items():
            current[name].copy_(value)

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is None:
            return
        current = averaged_parameters(pl_module)
        for name, value in self._raw.items():
            current[name].copy_(value)
        self._raw = None


def averaged_parameters(pl_module: LightningModule) -> dict[str, torch.nn.Parameter]:
    """What of a module is averaged, by name."""
    if isinstance(pl_module, SelfAveraged):
        return pl_module.averaged()
    return {
        name: parameter
        for name, parameter in pl_module.named_parameters()
        if parameter.requires_grad and not name.startswith("regularizer_modules.")
    }


def precise(parameter: Tensor) -> Tensor:
    """Its values in float32 at least."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


def averaged_steps(trainer: Trainer, pl_module: LightningModule) -> int:
    """Optimizer steps that count for averages."""
    return pl_module.averaged_steps() if isinstance(pl_module, SelfAveraged) else steps_taken(trainer)
