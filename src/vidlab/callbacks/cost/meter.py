"""Counts what a training has cost, over all its processes and all its resumptions."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from typing_extensions import override

from vidlab.cost.flops import ModelCost
from vidlab.cost.work import Work
from vidlab.parallel.ranks import data_ranks
from vidlab.training.module import ClipModule

UNITS = ("flops", "tokens", "samples", "seconds")
HALF = 2**32


class CostMeter(Callback):
    """Adds up steps, clips, tokens, FLOPs and seconds, and logs them with the losses of each step.

    FLOPs and tokens are those of the batches as they were computed: their shapes, the length of their captions, what
    the objective made of them, and the features that losses asked for. The work of all processes counts. Seconds are
    those of one clock from the first step on, without validation and without counting, which at a batch of a new shape
    is a pass over the network: processes work at the same time.

    The counts are kept in checkpoints, so that a resumed run goes on with them. It stands before the other callbacks:
    those that end or save a run see the step counted.

    Processes differ in the length of their captions and in their clocks. They exchange FLOPs and seconds where these
    are read: when they are logged, at validations, in checkpoints and at the end. The exchange goes from host to host,
    so that no step waits for a GPU.

    Args:
        clock: seconds.

    Attributes:
        work: of all optimizer steps so far; its FLOPs and seconds are as of the last exchange.
        each_step: exchange them at every optimizer step, for those who read them there.
        beside: FLOPs of what is no work of the denoiser, by what computes them; other processes are taken to be alike.
        cost: of one clip of the batch that was counted last; None before the first.
        counting: seconds that counting has taken in this process.
        planned: what a plan had expected of the same batches: ``planned_of`` added up.
        planned_of: the planned work of a batch of clips, by size and number of clips; None counts none.

    Logs:
        cost/flops, cost/tokens, cost/samples, cost/seconds: since the beginning of the run, all processes together.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work = Work()
        self.cost: ModelCost | None = None
        self.counting = 0.0
        self.planned = 0
        self.beside: Counter[str] = Counter()
        self.planned_of: Callable[[tuple[int, int, int], int], int] | None = None
        self.each_step = False
        self._open = Work()  # of the batches that accumulate to the next step, of this process
        self._own = Work()  # of the steps since the last exchange, of this process
        self._total: Callable[[Work], Work] = _of_one
        self._clock, self._mark = clock, 0.0
        self._training = False
        self._seen_step = 0

    @property
    @override
    def state_key(self) -> str:
        return "CostMeter"

    @override
    def state_dict(self) -> dict[str, Any]:
        self._exchange()
        return {
            "work": asdict(self.work),
            "open": asdict(self._open),
            "planned": self.planned,
            "beside": dict(self.beside),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.work, self._open = Work(**state_dict["work"]), Work(**state_dict["open"])
        self.planned, self.beside = state_dict["planned"], Counter(state_dict["beside"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ClipModule):
            raise TypeError("CostMeter counts the work of a ClipModule")
        pl_module.cost()  # builds what counts, before the clock runs
        self._total = _of_one if trainer.world_size == 1 else HostTotal(trainer.world_size, data_ranks(trainer).size)
        self._training, self._mark, self._seen_step = True, self._clock(), trainer.global_step

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange()
        self._training = False

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock stands still; before training it does not run yet."""
        if self._training:
            self._open += Work(seconds=self._lap())
            self._exchange()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ClipModule)
        seconds, clips = self._lap(), len(batch)
        self.cost = cost = pl_module.step_cost(batch)
        self._open += Work(0, clips, clips * cost.tokens, clips * cost.training_flops, seconds)
        for name, flops in pl_module.cost_beside(batch).items():
            self.beside[name] += data_ranks(trainer).size * flops
        if self.planned_of is not None:
            self.planned += data_ranks(trainer).size * self.planned_of(batch.size, clips)
        self.counting += self._lap()
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        ranks, done = data_ranks(trainer).size, self._open
        self.work += Work(1, ranks * done.samples, ranks * done.tokens)
        self._own, self._open = self._own + replace(done, steps=1), Work()
        logged = trainer._logger_connector.should_update_logs
        if self.each_step or logged:
            self._exchange()
        if logged:
            self._log(trainer)

    def _exchange(self) -> None:
        """Add what all processes have spent since the last time; they come here after the same step."""
        if self._own.steps:
            total = self._total(self._own)
            self.work += Work(flops=total.flops, seconds=total.seconds)
            self._own = Work()

    def _lap(self) -> float:
        now = self._clock()
        passed, self._mark = now - self._mark, now
        return passed

    def _log(self, trainer: Trainer) -> None:
        counts = {f"cost/{unit}": float(getattr(self.work, unit)) for unit in UNITS}
        for logger in trainer.loggers:
            logger.log_metrics(counts, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _of_one(own: Work) -> Work:
    return own


class HostTotal:
    """The FLOPs of all processes, and the mean of their seconds, the same on each of them.

    They have equally many clips of the same shapes, but captions of other lengths, and clocks of their own. Whole
    numbers are exchanged, which come out alike however they are added, by a group of the hosts.

    Args:
        ranks: processes, all of which make it and call it together.
        data_ranks: those of them with clips of their own; others tell the same clips again. None is all.
    """

    def __init__(self, ranks: int, data_ranks: int | None = None) -> None:
        self._ranks, self._hosts = ranks, distributed.new_group(backend="gloo")
        self._told = ranks // (data_ranks or ranks)

    def __call__(self, own: Work) -> Work:
        """What they have spent, given what this process has."""
        told = torch.tensor([*divmod(own.flops, HALF), round(own.seconds * 1e9)])  # FLOPs of many steps pass 64 bits
        distributed.all_reduce(told, group=self._hosts)
        high, low, nanoseconds = told.tolist()
        return Work(flops=(high * HALF + low) // self._told, seconds=nanoseconds / 1e9 / self._ranks)
