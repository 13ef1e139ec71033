"""The training loss by noise level and part: where a model still learns, and which weighting starves which levels."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vidlab.errors import UserError
from vidlab.training.step_interval import StepInterval


class LossByNoiseLevel(Callback):
    """Averages the objective per clip over equal bins of t and logs it every ``every_n_steps`` optimizer steps.

    All clips of the interval count, of every batch and rank. Sums stay on the device between logs. A bin that no clip
    fell into is not logged. Where an objective has parts, such as the stages of pyramid flow, each has its mean too.

    Args:
        bins: number of equal parts of [0, 1].
        every_n_steps: interval in optimizer steps.

    Logs:
        train/loss_at_t/<lower edge>; train/loss/<part>, such as train/loss/stage_0.

    Raises:
        UserError: an argument below 1.
    """

    def __init__(self, bins: int = 10, every_n_steps: int = 50) -> None:
        for name, value in {"bins": bins, "every_n_steps": every_n_steps}.items():
            if value < 1:
                raise UserError(f"callbacks.noise_levels.{name}={value} must be at least 1.")
        self.bins = bins
        self._interval = StepInterval(every_n_steps)
        self._sums: torch.Tensor | None = None
        self._parts: dict[str, torch.Tensor] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch; log and start anew at the interval."""
        t, per_clip = outputs["t"], outputs["per_clip"]
        level = t if t.ndim == 1 else t.mean(dim=1)
        if self._sums is None:
            self._sums = torch.zeros(2, self.bins, device=per_clip.device)
        counts = per_clip.isfinite()  # a batch that gradient clipping will discard may hold anything
        per_clip = torch.where(counts, per_clip.float(), 0.0)
        place = (level.to(per_clip.device) * self.bins).long().clamp(0, self.bins - 1)
        self._sums[0].index_add_(0, place, per_clip)
        self._sums[1].index_add_(0, place, counts.float())
        if part := outputs.get("part"):
            both = torch.stack([per_clip.sum(), counts.float().sum()])
            self._parts[part] = self._parts.get(part, torch.zeros_like(both)) + both
        if self._interval.due(trainer.global_step):
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        assert self._sums is not None
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = None
        found = {
            f"train/loss_at_t/{number / self.bins:g}": value / clips
            for number, (value, clips) in enumerate(zip(total, count, strict=True))
            if clips
        }
        # every rank trains the same parts, which are drawn for a whole global batch
        for part, sums in sorted(self._parts.items()):
            value, clips = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            found |= {f"train/loss/{part}": value / clips} if clips else {}
        self._parts = {}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
