"""Runs that end at a budget: how far they go, what they tell of their length, how they go on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule

from vidlab.callbacks.cost.budget import UNKNOWN, Budget, BudgetLimit, planned_cost
from vidlab.callbacks.cost.meter import CostMeter
from vidlab.callbacks.cost.planned import EqualSteps, VaryingSteps
from vidlab.callbacks.validate_at_end import ValidateAtEnd
from vidlab.cost.work import Work
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.errors import UserError
from vidlab.training.checkpoint_io import AtomicCheckpointIO
from vidlab.training.optimization.optimizers import Cosine


class Spy(Callback):
    """The length that the trainer tells, and the rates, after each step."""

    def __init__(self):
        self.lengths, self.rates = [], []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.lengths.append(trainer.max_steps)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def limited(unit, value, make_trainer, module, batch_size=1, **settings):
    """A trainer with a budget, its meter and a spy."""
    data = LightningDataModule()
    data.batch_size = batch_size
    meter, spy = CostMeter(), Spy()
    limit = BudgetLimit(Budget(unit, value), meter)
    settings = {"max_steps": -1, "plugins": [AtomicCheckpointIO()]} | settings
    trainer = make_trainer(callbacks=[meter, limit, ValidateAtEnd(), spy], **settings)
    limit.begin(trainer, module, data)
    return SimpleNamespace(trainer=trainer, meter=meter, limit=limit, spy=spy)


def clips(make_batch, count, keys="ab"):
    return [make_batch(keys, number=number) for number in range(count)]


# Of the module's clips of 4 x 8 x 8: 8 tokens each, with captions of four tokens, "a a moves" and the start.
def each_flops(make_module, make_batch):
    module = make_module()
    return module.plan.cost(module.costs.reads(module.objective.input_shapes(module.latent)[0], 4, 0)).training_flops


def value_of(unit, steps, make_module, make_batch, clips_per_step):
    cost = {"steps": 1, "samples": clips_per_step, "tokens": 8 * clips_per_step}
    if unit == "flops":
        return steps * clips_per_step * each_flops(make_module, make_batch)
    return steps * cost[unit]


@pytest.mark.parametrize(
    ("unit", "accumulate"), [("steps", 1), ("samples", 3), ("tokens", 3), ("flops", 1), ("flops", 3)]
)
def test_a_run_ends_with_the_step_that_reaches_its_budget(unit, accumulate, make_module, make_batch, make_trainer):
    exactly = value_of(unit, 4, make_module, make_batch, clips_per_step=accumulate)
    for value, steps in ((exactly, 4), (exactly + 0.5, 5)):
        module = make_module()
        run = limited(unit, value, make_trainer, module, accumulate_grad_batches=accumulate)
        run.trainer.fit(module, clips(make_batch, 20, "a"))
        assert run.trainer.global_step == run.meter.work.steps == run.trainer.max_steps == steps
        assert run.meter.work.samples == steps * accumulate and run.meter.work.tokens == 8 * steps * accumulate
        assert run.meter.work.flops == steps * accumulate * each_flops(make_module, make_batch)


def test_the_schedule_ends_with_the_budget(make_module, make_batch, make_trainer):
    """Captions are shorter than planned: the length is corrected after the first step, and the rates with it."""
    value = 20 * 2 * each_flops(make_module, make_batch)
    module = make_module(lr_schedule=Cosine(warmup_steps=2, final=0.0))
    run = limited("flops", value, make_trainer, module, batch_size=2)
    planned = run.trainer.max_steps
    assert planned < 20
    run.trainer.fit(module, clips(make_batch, 30))
    assert run.spy.lengths == [planned] + [20] * 19
    schedule = Cosine(warmup_steps=2, final=0.0)
    assert run.spy.rates[1:] == [0.05 * schedule.factor(20)(step) for step in range(1, 20)]


@pytest.mark.parametrize("unit", ["samples", "tokens", "steps"])
def test_what_is_known_beforehand_is_told_from_the_start(unit, make_module, make_batch, make_trainer):
    module = make_module(lr_schedule=Cosine(warmup_steps=2))
    run = limited(unit, value_of(unit, 6, make_module, make_batch, 2), make_trainer, module, batch_size=2)
    run.trainer.fit(module, clips(make_batch, 20))
    assert run.spy.lengths == [6] * 6


def test_a_resumed_run_ends_where_an_undisturbed_one_does(make_module, make_batch, make_trainer, tmp_path):
    value = 9 * 2 * each_flops(make_module, make_batch)

    def run(batches, **fit):
        module = make_module(lr_schedule=Cosine(warmup_steps=2))
        found = limited("flops", value, make_trainer, module, batch_size=2)
        found.trainer.fit(module, batches, **fit)
        return found, module

    (whole, expected), batches = run(clips(make_batch, 20)), clips(make_batch, 20)
    module = make_module(lr_schedule=Cosine(warmup_steps=2))
    stopping = limited("flops", value, make_trainer, module, batch_size=2)

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 4

    stopping.trainer.callbacks.append(Stop())
    stopping.trainer.fit(module, batches)
    stopping.trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert stopping.meter.work.steps == 4
    resumed, found = run(batches[4:], ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert resumed.meter.work.flops == whole.meter.work.flops == value and resumed.trainer.global_step == 9
    assert resumed.spy.rates == whole.spy.rates[4:] and resumed.spy.lengths == whole.spy.lengths[4:]
    assert all(map(torch.equal, found.parameters(), expected.parameters()))
    assert resumed.meter.work.seconds > stopping.meter.work.seconds


def test_by_the_clock_the_length_is_the_pace_so_far():
    """Ten steps in four of sixteen seconds: forty in all; the rates go by the share of the time."""
    meter = CostMeter()
    limit = BudgetLimit(Budget("wall_time", 16), meter)
    assert limit.length() == UNKNOWN
    meter.work = Work(steps=10, seconds=4.0)
    assert limit.length() == 40
    meter.work = Work(steps=30, seconds=15.9)
    assert limit.length() == 31
    meter.work = Work(steps=31, seconds=16.0)
    assert limit.length() == 31


def test_the_clock_stands_still_during_validation(make_module, make_batch, make_trainer):
    class Slow(Callback):
        def on_validation_batch_end(self, *_):
            clock.now += 100.0

        def on_train_batch_start(self, *_):
            clock.now += 1.0

    clock = SimpleNamespace(now=0.0)
    meter = CostMeter(lambda: clock.now)
    limit, module = BudgetLimit(Budget("wall_time", 5), meter), make_module()
    trainer = make_trainer(
        max_steps=-1, callbacks=[meter, limit, Slow()], val_check_interval=2, check_val_every_n_epoch=None
    )
    limit.begin(trainer, module, LightningDataModule())
    trainer.fit(module, clips(make_batch, 20), clips(make_batch, 1))
    assert meter.work.steps == 5 and meter.work.seconds == 5.0


@pytest.mark.parametrize(
    ("unit", "value", "limit", "message"),
    [
        ("flops", None, -1, r"budget=flops needs budget.value, the FLOPs that the run may cost"),
        ("tokens", 0, -1, r"budget.value=0: it must be a positive number of tokens"),
        ("samples", math.inf, -1, r"budget.value=inf: it must be a positive number of clips"),
        ("tokens", 7, -1, r"budget.value=7: one step of this run costs 8 tokens"),
        ("flops", 10, -1, r"budget.value=10: one step of this run costs \d"),
        (
            "samples",
            12,
            11,
            r"trainer.max_steps=11 ends the run before its budget of 12 clips, which is about 12 steps",
        ),
        ("epochs", 1, -1, r"budget.unit=epochs: choose one of steps, samples, tokens, flops, wall_time"),
    ],
)
def test_what_cannot_be_is_refused(unit, value, limit, message, make_module, make_trainer):
    module = make_module()
    with pytest.raises(UserError, match=message):
        limited(unit, value, make_trainer, module, max_steps=limit)


def test_a_number_of_steps_beside_a_budget_is_an_upper_bound(make_module, make_batch, make_trainer):
    module = make_module()
    run = limited("wall_time", 1e6, make_trainer, module, max_steps=3)
    run.trainer.fit(module, clips(make_batch, 20))
    assert run.trainer.global_step == 3 and set(run.spy.lengths) == {3}


def test_a_checkpoint_that_counts_no_cost_is_refused(make_module, make_batch, make_trainer, tmp_path):
    before = make_trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    before.fit(make_module(), clips(make_batch, 4))
    before.save_checkpoint(tmp_path / "old.ckpt")
    module = make_module()
    run = limited("samples", 100, make_trainer, module)
    with pytest.raises(UserError, match="is of step 2 and counts the cost of 0 steps"):
        run.trainer.fit(module, clips(make_batch, 4), ckpt_path=str(tmp_path / "old.ckpt"), weights_only=True)


def test_equal_and_varying_steps_by_hand():
    assert [EqualSteps(3).steps_for(cost) for cost in (-1, 0, 1, 3, 4)] == [0, 0, 1, 1, 2]
    varying = VaryingSteps([5, 1, 1, 10, 10, 10].__getitem__)
    assert [varying.steps_for(cost) for cost in (0, 1, 5, 6, 8, 17, 18)] == [0, 1, 1, 2, 4, 4, 5]
    assert varying.after(4) == 17


def data_of(plan, consumed=0) -> ClipDataModule:
    """As much of a DataModule as the plan of a budget reads."""
    data = ClipDataModule.__new__(ClipDataModule)
    data.bucketing, data.batches_consumed = SimpleNamespace(max_tokens=64), consumed
    data.planned = lambda world_size: SimpleNamespace(plan=plan)
    return data


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_steps_of_buckets_cost_what_their_clips_do(accumulate, make_module):
    """Two processes; batches of both shapes, shorter ones at the ends of buckets, images among them."""
    codes = np.repeat([0, 1], [26, 20]).astype(np.int16)
    videos = BucketPlan(Assignment((Bucket(2, 8, 8), Bucket(4, 8, 8)), codes), [4, 2], 0, 2, "smaller")
    images = SingleBucketPlan(Assignment((Bucket(2, 8, 8),), np.zeros(8, np.int16)), 3, 0, 2)
    plan, module = InterleavedPlan(videos, images, 4), make_module()
    costs = [2 * len(plan.batch(n)) * (8 if plan.bucket(n).frames == 4 else 4) for n in range(5, 65)]
    assert len(set(costs)) == 3
    planned = planned_cost(Budget("tokens", 1), module, data_of(plan, consumed=5), 2, accumulate)
    steps = [sum(costs[k : k + accumulate]) for k in range(0, 60, accumulate)]
    assert [planned.after(n) for n in range(20)] == [sum(steps[:n]) for n in range(20)]


def test_the_cost_of_a_shape_is_asked_for_once(make_module, monkeypatch):
    codes = np.repeat([0, 1], [26, 20]).astype(np.int16)
    plan = BucketPlan(Assignment((Bucket(2, 8, 8), Bucket(4, 8, 8)), codes), [4, 2], 0, 2, "smaller")
    module, asked = make_module(), []
    cost = module.cost
    monkeypatch.setattr(module, "cost", lambda size: asked.append(size) or cost(size))
    planned_cost(Budget("tokens", 1), module, data_of(plan), 2, 1).after(100)
    assert set(asked) == {(2, 8, 8), (4, 8, 8)} and len(asked) <= 4  # whole batches and shorter ones
