"""Where the time of training goes, and what rate it reaches."""

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

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


@dataclass(frozen=True)
class _Work:
    """What all ranks have computed, forward and backward."""

    tokens: int = 0
    flops: int = 0
    attention_flops: int = 0
    batches: int = 0

    def __add__(self, other: "_Work") -> "_Work":
        return _Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Throughput(Callback):
    """Times the phases of each step on the host clock and logs rates every ``every_n_steps`` optimizer steps.

    Tokens and FLOPs are those of the batches' own shapes and caption lengths, however these vary.

    On a GPU, work is queued: time shows up in the phase that waits for it. Rates are right there too, since a
    window of steps ends in a synchronization.

    Logs:
        throughput/steps_per_second, throughput/tokens_per_second, throughput/tflops_per_second.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps = 0
        self._work = _Work()
        self._shapes: dict[str, tuple[_Work, float]] = {}
        self._ranks = 1
        self._seen_step = 0
        self._mark: float | None = None
        self._window_start: float | None = None
        self._window_steps, self._window_work = 0, _Work()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the cost of a clip and start the clock."""
        if not isinstance(pl_module, ClipModule):
            raise TypeError("Throughput counts the tokens and FLOPs of a ClipModule")
        pl_module.cost()  # builds what counts, outside the clock
        self._ranks, self._seen_step = trainer.world_size, trainer.global_step
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
        work = self._work_of(batch, pl_module)
        self._count_shape("x".join(map(str, batch.size)), work)
        self.steps += stepped
        self._work += work
        self._window_steps += stepped
        self._window_work += work
        if stepped and self._window_steps >= self.every_n_steps:
            self._log_window(trainer, pl_module)

    def _work_of(self, batch: Any, module: ClipModule) -> "_Work":
        before = time.perf_counter()
        cost = module.step_cost(batch)  # counted once for each shape and caption length
        self._skip(time.perf_counter() - before)
        clips = self._ranks * len(batch)
        return _Work(clips * cost.tokens, clips * cost.training_flops, clips * cost.attention_flops, 1)

    @property
    def _training_seconds(self) -> float:
        return sum(self.seconds[phase] for phase in PHASES if phase != "other")

    def _count_shape(self, shape: str, work: _Work) -> None:
        """The seconds since the batch before are this one's."""
        before, seconds = self._shapes.get(shape, (_Work(), 0.0))
        timed = sum(each for _, each in self._shapes.values())
        self._shapes[shape] = before + work, seconds + self._training_seconds - timed

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
            steps=self.steps,
            seconds=dict(self.seconds),
            steps_per_second=self.steps / training,
            tokens_per_second=self._work.tokens / training,
            flops_per_second=self._work.flops / training,
            flops_per_step=self._work.flops / max(self.steps, 1),
            shapes={
                shape: ShapeReport(work.batches, seconds, work.flops, work.attention_flops)
                for shape, (work, seconds) in self._shapes.items()
            },
        )

    def _restart_window(self) -> None:
        self._window_start = time.perf_counter()
        self._window_steps, self._window_work = 0, _Work()

    def _log_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        assert self._window_start is not None
        elapsed = time.perf_counter() - self._window_start
        work = self._window_work
        pl_module.log_dict(
            {
                "throughput/steps_per_second": self._window_steps / elapsed,
                "throughput/tokens_per_second": work.tokens / elapsed,
                "throughput/tflops_per_second": work.flops / elapsed / 1e12,
            }
        )
        self._restart_window()
