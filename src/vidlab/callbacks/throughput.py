"""Where the time of training goes, and what rate it reaches."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from vidlab.callbacks.cost.meter import CostMeter
from vidlab.cost.flops import ModelCost
from vidlab.cost.work import Work
from vidlab.parallel.ranks import data_ranks
from vidlab.training.module import ClipModule

PHASES = ("data", "forward", "backward", "optimizer", "other")


@dataclass(frozen=True)
class ThroughputReport:
    """Means over a run, without its first step.

    ``steps`` are optimizer steps, of all batches that accumulate to one. ``seconds`` splits the training time by phase;
    validation, previews and checkpoints count as "other". Tokens and FLOPs are those of all ranks: matrix products of
    the trained network, forward and backward, as they were computed.
    """

    steps: int
    seconds: dict[str, float]
    steps_per_second: float
    tokens_per_second: float
    flops_per_second: float
    flops_per_step: float
    shapes: Mapping[str, "ShapeReport"] = field(default_factory=dict)


@dataclass(frozen=True)
class ShapeReport:
    """Sums over the batches of one shape of clips, of all ranks.

    On a GPU the seconds of a batch are those until the host has queued it: where shapes are mixed they belong in part
    to the batch before.
    """

    batches: int
    seconds: float
    flops: int
    attention_flops: int


class Throughput(Callback):
    """Times the phases of each step on the host clock and logs rates every ``every_n_steps`` optimizer steps.

    Tokens and FLOPs are those of the batches' own shapes and caption lengths, however these vary. A ``CostMeter``
    before it has counted them already; the seconds that counting takes are left out.

    On a GPU, work is queued: time shows up in the phase that waits for it. Rates are right there too, since a
    window of steps ends in a synchronization.

    Logs:
        throughput/steps_per_second, throughput/tokens_per_second, throughput/tflops_per_second.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._work = Work()
        self._shapes: dict[str, ShapeReport] = {}
        self._meter: CostMeter | None = None
        self._skipped = 0.0
        self._ranks = 1
        self._seen_step = 0
        self._mark: float | None = None
        self._window_start: float | None = None
        self._window = Work()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the cost of a clip and start the clock."""
        if not isinstance(pl_module, ClipModule):
            raise TypeError("Throughput counts the tokens and FLOPs of a ClipModule")
        pl_module.cost()  # builds what counts, outside the clock
        self._ranks, self._seen_step = data_ranks(trainer).size, trainer.global_step
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._meter = next((one for one in callbacks if isinstance(one, CostMeter)), None)
        self._skipped = 0.0 if self._meter is None else self._meter.counting
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

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The weights are updated."""
        if self._meter is not None:
            self._skip(self._meter.counting - self._skipped)
            self._skipped = self._meter.counting
        self._lap("optimizer")
        stepped = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if self._window_start is None:
            # the first step pays for worker start-up, allocations and compilation
            self.seconds = dict.fromkeys(PHASES, 0.0)
            if stepped:
                self._restart_window()
            return
        assert isinstance(pl_module, ClipModule)
        cost, clips = self._cost_of(batch, pl_module), self._ranks * len(batch)
        work = Work(int(stepped), clips, clips * cost.tokens, clips * cost.training_flops)
        self._count_shape("x".join(map(str, batch.size)), work.flops, clips * cost.attention_flops)
        self._work += work
        self._window += work
        if stepped and self._window.steps >= self.every_n_steps:
            self._log_window(trainer, pl_module)

    def _cost_of(self, batch: Any, module: ClipModule) -> ModelCost:
        if self._meter is not None and self._meter.cost is not None:
            return self._meter.cost
        before = time.perf_counter()
        cost = module.step_cost(batch)  # counted once for each shape and caption length
        self._skip(time.perf_counter() - before)
        return cost

    @property
    def _training_seconds(self) -> float:
        return sum(self.seconds[phase] for phase in PHASES if phase != "other")

    def _count_shape(self, shape: str, flops: int, attention_flops: int) -> None:
        """The seconds since the batch before are this one's."""
        before = self._shapes.get(shape, ShapeReport(0, 0.0, 0, 0))
        seconds = self._training_seconds - sum(each.seconds for each in self._shapes.values())
        self._shapes[shape] = ShapeReport(
            before.batches + 1, before.seconds + seconds, before.flops + flops, before.attention_flops + attention_flops
        )

    def _skip(self, seconds: float) -> None:
        """Counting is no part of training."""
        self._mark = None if self._mark is None else self._mark + seconds
        self._window_start = None if self._window_start is None else self._window_start + seconds

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training time; before training the clock does not run."""
        self._lap("other")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("other")
        if self._window_start is not None:
            self._restart_window()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("other")
        self._mark = None

    def report(self) -> ThroughputReport:
        """Means over the run so far."""
        training = max(self._training_seconds, 1e-9)
        return ThroughputReport(
            steps=self._work.steps,
            seconds=dict(self.seconds),
            steps_per_second=self._work.steps / training,
            tokens_per_second=self._work.tokens / training,
            flops_per_second=self._work.flops / training,
            flops_per_step=self._work.flops / max(self._work.steps, 1),
            shapes=dict(self._shapes),
        )

    def _restart_window(self) -> None:
        self._window_start = time.perf_counter()
        self._window = Work()

    def _log_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        assert self._window_start is not None
        elapsed = time.perf_counter() - self._window_start
        work = self._window
        pl_module.log_dict(
            {
                "throughput/steps_per_second": work.steps / elapsed,
                "throughput/tokens_per_second": work.tokens / elapsed,
                "throughput/tflops_per_second": work.flops / elapsed / 1e12,
            }
        )
        self._restart_window()
