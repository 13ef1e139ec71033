"""What a training costs: when processes tell each other, and what the clock runs for."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import distributed

from vidlab.callbacks import throughput
from vidlab.callbacks.cost import meter as cost_meter
from vidlab.callbacks.cost.budget import Budget, BudgetLimit
from vidlab.callbacks.cost.meter import CostMeter, HostTotal
from vidlab.cost.work import Work


class Totals:
    """Two processes, of which the other has spent as much; notes after which steps they are asked."""

    def __init__(self, meter):
        self.meter, self.steps = meter, []

    def __call__(self, own):
        self.steps.append(self.meter.work.steps)
        return Work(flops=2 * own.flops, seconds=own.seconds)


class OfTwo(Callback):
    """The process believes to be one of two while it counts."""

    def __init__(self, monkeypatch, meter):
        self.totals = Totals(meter)
        monkeypatch.setattr(cost_meter, "HostTotal", lambda ranks, *_: self.totals)
        monkeypatch.setattr(Trainer, "world_size", 2)


@pytest.mark.parametrize(
    ("unit", "value", "asked"),
    [("steps", 6, [3, 6]), ("samples", 24, [3, 6]), ("tokens", 192, [3, 6]), ("flops", None, [1, 2, 3, 4, 5, 6])],
)
def test_processes_tell_each_other_when_somebody_reads(
    unit, value, asked, make_module, make_batch, make_trainer, monkeypatch
):
    """Batches of two clips of 8 tokens, logged every third step: only FLOPs end a run by what others have spent."""
    meter, module, data = CostMeter(), make_module(), LightningDataModule()
    data.batch_size = 2
    other = OfTwo(monkeypatch, meter)
    read = module.costs.reads(module.objective.input_shapes(module.latent)[0], 4, 0)
    each = module.plan.cost(read).training_flops
    limit = BudgetLimit(Budget(unit, value or 6 * 4 * each), meter)
    trainer = make_trainer(max_steps=-1, log_every_n_steps=3, callbacks=[meter, limit])
    limit.begin(trainer, module, data)
    trainer.fit(module, [make_batch("ab", number=number) for number in range(12)])
    assert meter.work.steps == 6 and other.totals.steps == asked
    assert (meter.work.samples, meter.work.tokens, meter.work.flops) == (24, 192, 24 * each)


def test_a_checkpoint_holds_what_all_processes_have_spent(make_module, make_batch, make_trainer, monkeypatch):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(dict(meter.state_dict()["work"]))

    seen, meter = [], CostMeter()
    other = OfTwo(monkeypatch, meter)
    trainer = make_trainer(max_steps=2, log_every_n_steps=100, callbacks=[meter, Save()])
    trainer.fit(make_module(), [make_batch("ab", number=number) for number in range(2)])
    assert other.totals.steps == [1, 2] and seen[1]["flops"] == 2 * seen[0]["flops"] == meter.work.flops > 0


def test_totals_are_exact_beyond_64_bits(monkeypatch):
    """Of three processes of which the others have spent as much."""
    monkeypatch.setattr(distributed, "new_group", lambda backend: backend)

    def all_reduce(told, group):
        assert group == "gloo" and told.device.type == "cpu" and told.dtype == torch.int64
        told.mul_(3)

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    assert HostTotal(3)(Work(flops=2**64 + 1, seconds=1.5)) == Work(flops=3 * 2**64 + 3, seconds=1.5)


def test_counting_is_no_part_of_training(make_module, make_batch, make_trainer, monkeypatch):
    """By a hand-set clock: a batch takes 1 s to arrive, and counting its cost, or what stands beside it, 100 s."""

    class Slow(Callback):
        def on_train_batch_start(self, *_):
            clock.now += 1.0

    clock, module = SimpleNamespace(now=0.0), make_module()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slowly(count):
        def counted(batch):
            clock.now += 100.0
            return count(batch)

        return counted

    for name in ("step_cost", "cost_beside"):
        monkeypatch.setattr(module, name, slowly(getattr(module, name)))
    meter, rates = CostMeter(lambda: clock.now), throughput.Throughput(every_n_steps=2)
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    trainer = make_trainer(max_steps=3, callbacks=[meter, Slow(), rates])
    trainer.fit(module, [make_batch("ab", number=number) for number in range(3)])
    report = rates.report()
    assert meter.work.seconds == 3.0 and meter.counting == 600.0
    assert report.seconds == {"data": 2.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0, "other": 0.0}
    assert logged["throughput/steps_per_second"] == 1.0
    assert 3 * report.shapes["4x8x8"].flops == 2 * meter.work.flops
    assert 3 * report.tokens_per_second * 2.0 == 2 * meter.work.tokens
