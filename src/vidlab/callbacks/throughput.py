"""Where the time of training goes, and what rate it reaches."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vidlab.cost import ModelCost
from vidlab.training.video_diffusion import VideoDiffusion

PHASES = ("data", "forward", "backward", "optimizer", "other")


@dataclass(frozen=True)
class ThroughputReport:
    """Means over a run, without its first step.

    ``seconds`` splits the training time by phase; validation, previews and checkpoints count as "other".
    ``flops_per_second`` counts the denoiser's matrix products, forward and backward.
    """

    steps: int
    seconds: dict[str, float]
    steps_per_second: float
    tokens_per_second: float
    flops_per_second: float


class Throughput(Callback):
    """Times the phases of each step on the host clock and logs rates every ``every_n_steps``.

    On a GPU, work is queued: time shows up in the phase that waits for it. Rates are right there too, since a
    window of steps ends in a synchronisation.

    Logs:
        throughput/steps_per_second, throughput/tokens_per_second, throughput/tflops_per_second.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps = 0
        self.clips = 0
        self.cost: ModelCost | None = None
        self._mark: float | None = None
        self._window_start: float | None = None
        self._window_steps = self._window_clips = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the model's cost and start the clock."""
        if not isinstance(pl_module, VideoDiffusion):
            raise TypeError("Throughput counts the tokens and FLOPs of a VideoDiffusion module")
        self.cost = pl_module.cost()
        self._mark = time.perf_counter()

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds[phase] += now - self._mark
            self._mark = now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The batch has arrived."""
        self._lap("data")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """The loss is known."""
        self._lap("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gradients are known."""
        self._lap("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The weights are updated."""
        self._lap("optimizer")
        if self._window_start is None:
            # the first step pays for worker start-up, allocations and compilation
            self.seconds = dict.fromkeys(PHASES, 0.0)
            self._restart_window()
            return
        self.steps += 1
        self.clips += len(batch)
        self._window_steps += 1
        self._window_clips += len(batch)
        if self._window_steps >= self.every_n_steps:
            self._log_window(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training time; before training the clock does not run."""
        self._lap("other")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        self._lap("other")
        if self._window_start is not None:
            self._restart_window()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._lap("other")
        self._mark = None

    def report(self) -> ThroughputReport:
        """Means over the run so far."""
        training = max(sum(self.seconds[phase] for phase in PHASES if phase != "other"), 1e-9)
        tokens = self.cost.tokens if self.cost else 0
        flops = self.cost.training_flops if self.cost else 0
        return ThroughputReport(
            steps=self.steps,
            seconds=dict(self.seconds),
            steps_per_second=self.steps / training,
            tokens_per_second=self.clips * tokens / training,
            flops_per_second=self.clips * flops / training,
        )

    def _restart_window(self) -> None:
        self._window_start = time.perf_counter()
        self._window_steps = self._window_clips = 0

    def _log_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        assert self.cost is not None and self._window_start is not None
        cost, elapsed = self.cost, time.perf_counter() - self._window_start
        clips = self._window_clips * trainer.world_size
        pl_module.log_dict(
            {
                "throughput/steps_per_second": self._window_steps / elapsed,
                "throughput/tokens_per_second": clips * cost.tokens / elapsed,
                "throughput/tflops_per_second": clips * cost.training_flops / elapsed / 1e12,
            }
        )
        self._restart_window()
