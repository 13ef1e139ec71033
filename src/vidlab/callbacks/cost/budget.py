"""Ends a training when it has cost as much as it may, and tells the rest how long the run is."""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from vidlab.callbacks.cost.meter import CostMeter
from vidlab.callbacks.cost.planned import EqualSteps, PlannedCost, Size, VaryingSteps
from vidlab.cost.work import Work
from vidlab.data.module import ClipDataModule
from vidlab.errors import UserError
from vidlab.parallel.ranks import data_ranks
from vidlab.training.module import ClipModule

# The length of a run by the clock before its first step has shown a pace.
UNKNOWN = 10**9

COUNTED = {"steps": "steps", "samples": "samples", "tokens": "tokens", "flops": "flops", "wall_time": "seconds"}
EXAMPLES = {"steps": "1000", "samples": "64000", "tokens": "1e8", "flops": "1e14", "wall_time": "3600"}
EXCHANGED = ("flops", "wall_time")  # what a process cannot know of the others
NAMES = {"samples": "clips", "flops": "FLOPs", "wall_time": "seconds"}


@dataclass(frozen=True)
class Budget:
    """How much a training may cost.

    Args:
        unit: what is counted: ``steps`` of the optimizer, ``samples`` (clips, each as often as it is trained on),
            ``tokens`` of the denoiser, ``flops`` of the whole denoiser, forward and backward, its frozen parts and
            second branches included, or ``wall_time``, seconds of training without validation. All processes count.
        value: how much of it. A run ends with the first step that reaches it, so that it spends less than one step
            more.

    Raises:
        UserError: no value, or one that is not positive.
    """

    unit: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in COUNTED:
            raise UserError(f"budget.unit={self.unit}: choose one of {', '.join(COUNTED)}.")
        if self.value is None:
            raise UserError(
                f"budget={self.unit} needs budget.value, the {self.name} that the run may cost, such as "
                f"budget.value={EXAMPLES[self.unit]}."
            )
        if not (self.value > 0 and math.isfinite(self.value)):
            raise UserError(f"budget.value={self.value}: it must be a positive number of {self.name}.")

    @property
    def name(self) -> str:
        """What is counted, in words."""
        return NAMES.get(self.unit, self.unit)

    @property
    def whole(self) -> int:
        """The value as the fewest whole units that reach it; of what is counted, not timed."""
        assert self.value is not None
        return math.ceil(self.value)

    def spent(self, work: Work) -> float:
        """How much of it has been spent."""
        found: float = getattr(work, COUNTED[self.unit])
        return found

    def reached(self, work: Work) -> bool:
        """Whether nothing is left."""
        assert self.value is not None
        return self.spent(work) >= self.value

    def of_batch(self, module: ClipModule, size: Size, clips: int) -> int:
        """What a batch of one process is planned to cost, of what is counted."""
        if self.unit == "samples":
            return clips
        cost = module.cost(size)
        return clips * (cost.tokens if self.unit == "tokens" else cost.training_flops)


class BudgetLimit(Callback):
    """Ends training with the first optimizer step at which a budget is spent.

    ``trainer.max_steps`` becomes the step at which the run is going to end, for all that needs it: the learning-rate
    schedule, the progress bar, the last validation. Before the first step it follows from the plan of the data; later
    from the plan and from how far what was spent has differed from it, as captions are longer or shorter than was
    planned. By the clock it is the pace so far. It is a function of the counts and the plan alone: a resumed run has
    the rates of an undisturbed one; by the clock they go on from the share that was spent.

    It must stand behind the meter and before callbacks that act at the last step.

    Args:
        budget: what may be spent.
        meter: counts it.

    Attributes:
        limit: ``trainer.max_steps`` as it was given; -1 for none.

    Raises:
        UserError: in ``begin``, a value below one step, or a ``trainer.max_steps`` that ends the run before.
    """

    def __init__(self, budget: Budget, meter: CostMeter) -> None:
        self.budget, self._meter = budget, meter
        self.limit = -1
        self._first_step = 0
        self._plan: PlannedCost | None = None
        self._data: LightningDataModule | None = None

    def begin(self, trainer: Trainer, module: ClipModule, data: LightningDataModule) -> None:
        """Refuse what cannot be, and give a run that begins anew its length."""
        self.limit, self._data = trainer.max_steps, data
        self._meter.each_step = self.budget.unit in EXCHANGED
        if self.budget.unit != "wall_time":
            self._make_plan(trainer, module, data)
            assert self._plan is not None
            check_length(self.budget, self._plan, self.limit)
        self._set_length(trainer)

    def _make_plan(self, trainer: Trainer, module: ClipModule, data: Any) -> None:
        budget = self.budget
        if budget.unit != "steps":
            self._meter.planned_of = lambda size, clips: budget.of_batch(module, size, clips)
        self._plan = planned_cost(budget, module, data, data_ranks(trainer).size, trainer.accumulate_grad_batches)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now a resumed run knows what it has spent, and where its data goes on."""
        assert isinstance(pl_module, ClipModule)
        self._first_step = self._meter.work.steps
        if self._first_step and self.budget.unit != "wall_time":
            self._make_plan(trainer, pl_module, self._data)
        self._set_length(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._meter.work.steps:
            raise UserError(
                f"The checkpoint is of step {trainer.global_step} and counts the cost of {self._meter.work.steps} "
                "steps: it was written before costs were counted. Use budget=none and trainer.max_steps."
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        before = trainer.max_steps
        self._set_length(trainer)
        if trainer.max_steps != before and trainer.max_steps > trainer.global_step:
            assert isinstance(pl_module, ClipModule)
            pl_module.follow_length()

    def _set_length(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        length = self.length()
        trainer.fit_loop.epoch_loop.max_steps = length if self.limit < 0 else min(length, self.limit)

    def length(self) -> int:
        """The step at which the run ends, by what is known now."""
        work, budget = self._meter.work, self.budget
        if budget.reached(work):
            return work.steps
        return max(work.steps + 1, self._timed() if self._plan is None else self._planned(self._plan))

    def _timed(self) -> int:
        work, value = self._meter.work, self.budget.value
        assert value is not None
        return UNKNOWN if work.steps == 0 else min(UNKNOWN, math.ceil(work.steps * value / max(work.seconds, 1e-9)))

    def _planned(self, plan: PlannedCost) -> int:
        """What is left is taken to differ from its plan by the factor by which what was spent has differed."""
        left, spent = self.budget.whole - int(self.budget.spent(self._meter.work)), self._meter.work
        taken = spent.steps - self._first_step
        if spent.steps and self._meter.planned:
            left = -(-left * self._meter.planned // int(self.budget.spent(spent)))
        return self._first_step + plan.steps_for(plan.after(taken) + left)


def planned_cost(budget: Budget, module: ClipModule, data: Any, ranks: int, batches: int) -> PlannedCost:
    """The planned cost of the optimizer steps to come, of all processes.

    Args:
        budget: says what is counted.
        module: what is trained.
        data: at the batch with which the run begins or goes on; of one shape, whatever has its ``batch_size``.
        ranks: processes.
        batches: that accumulate to a step.
    """
    if budget.unit == "steps":
        return EqualSteps(1)
    if not isinstance(data, ClipDataModule) or data.bucketing.max_tokens is None:
        clips = getattr(data, "batch_size", 1)
        return EqualSteps(ranks * batches * budget.of_batch(module, module.clip_shape, clips))
    plan, first = data.planned(ranks).plan, data.batches_consumed
    known = cache(partial(budget.of_batch, module))  # few shapes, in all batches of a run

    def of_batch(number: int) -> int:
        bucket = plan.bucket(number)
        return known((bucket.frames, bucket.height, bucket.width), plan.clips_at(number))

    def of_step(step: int) -> int:
        return ranks * sum(of_batch(first + step * batches + each) for each in range(batches))

    return VaryingSteps(of_step)


def check_length(budget: Budget, plan: PlannedCost, limit: int) -> int:
    """The planned number of steps of a run.

    Args:
        budget: of what is counted, not timed.
        plan: from ``planned_cost``, from the beginning of the run.
        limit: ``trainer.max_steps``, -1 for none.

    Raises:
        UserError: a value below one step, or a limit that ends the run before.
    """
    one, steps = plan.after(1), plan.steps_for(budget.whole)
    if budget.whole < one:
        raise UserError(
            f"budget.value={budget.value:g}: one step of this run costs {one:.4g} {budget.name}. Give at least that."
        )
    if 0 <= limit < steps:
        raise UserError(
            f"trainer.max_steps={limit} ends the run before its budget of {budget.value:g} {budget.name}, "
            f"which is about {steps} steps. Leave trainer.max_steps out (trainer.max_steps=-1 where an experiment "
            "sets it), or use budget=none."
        )
    return steps
