"""Callbacks that act at certain steps: the last checkpoint, validation at the end, the clock."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from vidlab.callbacks import throughput
from vidlab.callbacks.finite_loss import FiniteLoss
from vidlab.callbacks.last_checkpoint import LastCheckpoint
from vidlab.callbacks.throughput import ShapeReport, Throughput
from vidlab.callbacks.validate_at_end import ValidateAtEnd
from vidlab.errors import UserError
from vidlab.training.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from vidlab.training.finiteness import all_finite


class Saves(Callback):
    """Remembers the optimizer steps at which checkpoints are written."""

    def __init__(self):
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.steps.append(trainer.global_step)


def batches(make_batch, count: int):
    return [make_batch("ab", number=n) for n in range(count)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_checkpoints_at_intervals_and_at_the_end(make_module, make_batch, make_trainer, tmp_path, accumulate):
    saves, last = Saves(), LastCheckpoint(str(tmp_path / "checkpoints"), 2)
    trainer = make_trainer(
        max_steps=5, accumulate_grad_batches=accumulate, callbacks=[saves, last], plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(make_module(), batches(make_batch, 5 * accumulate))
    assert saves.steps == [2, 4, 5]
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_a_resumed_run_does_not_save_before_its_first_step(make_module, make_batch, make_trainer, tmp_path):
    def trainer(steps, saves):
        return make_trainer(
            max_steps=steps, accumulate_grad_batches=3, plugins=[AtomicCheckpointIO()],
            callbacks=[saves, LastCheckpoint(str(tmp_path), 2)], enable_checkpointing=True,
        )  # fmt: skip

    trainer(2, first := Saves()).fit(make_module(), batches(make_batch, 6))
    trainer(4, second := Saves()).fit(make_module(), batches(make_batch, 12), ckpt_path=tmp_path / "last.ckpt")
    assert first.steps == [2] and second.steps == [4]


class Measures(Callback):
    """Changes the module in validation, as an autoencoder's scale of latents is."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.measured.fill_(trainer.global_step)


def test_what_a_validation_measures_is_in_the_checkpoint_of_its_step(make_module, make_batch, make_trainer, tmp_path):
    module, saves = make_module(), Saves()
    module.register_buffer("measured", torch.tensor(-1.0))
    trainer = make_trainer(
        max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, plugins=[AtomicCheckpointIO()],
        callbacks=[Measures(), saves, LastCheckpoint(str(tmp_path), 2)], enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(module, batches(make_batch, 4), [make_batch("cd")])
    assert saves.steps == [2, 4, 4]
    assert load_checkpoint(tmp_path / "last.ckpt")["state_dict"]["measured"] == 4


def test_an_interval_is_at_least_one_step():
    with pytest.raises(UserError, match=r"callbacks.checkpoint.every_n_steps=0"):
        LastCheckpoint("folder", 0)


class Validations(Callback):
    def __init__(self):
        self.steps: list[int] = []

    def on_validation_start(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(("steps", "expected"), [(5, [2, 4, 5]), (4, [2, 4])])
def test_validation_follows_the_last_step(make_module, make_batch, make_trainer, steps, expected):
    seen = Validations()
    trainer = make_trainer(
        max_steps=steps, val_check_interval=2, check_val_every_n_epoch=None, callbacks=[ValidateAtEnd(), seen]
    )
    trainer.fit(make_module(), batches(make_batch, 8), [make_batch("cd")])
    assert trainer.global_step == steps and seen.steps == expected


def test_phases_and_rates_by_a_hand_set_clock(make_module, make_batch, make_trainer, monkeypatch):
    module, clock = make_module(), SimpleNamespace(now=0.0, steps=0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    callback, trainer, batch = Throughput(every_n_steps=2), make_trainer(), make_batch("ab")
    monkeypatch.setattr(type(trainer), "world_size", 3)
    monkeypatch.setattr(type(trainer), "global_step", property(lambda _: clock.steps))
    callback.on_train_start(trainer, module)

    def step(data, forward, backward, optimizer):
        def last() -> None:
            clock.steps += 1
            callback.on_train_batch_end(trainer, module, None, batch, 0)

        for seconds, hook in (
            (data, lambda: callback.on_train_batch_start(trainer, module, batch, 0)),
            (forward, lambda: callback.on_before_backward(trainer, module, torch.zeros(()))),
            (backward, lambda: callback.on_after_backward(trainer, module)),
            (optimizer, last),
        ):
            clock.now += seconds
            hook()

    step(100, 100, 100, 100)  # the first does not count
    step(1, 2, 4, 1)
    callback.on_validation_start(trainer, module)
    clock.now += 50
    callback.on_validation_end(trainer, module)
    assert logged == {}
    step(1, 2, 4, 1)
    step(0, 1, 2, 1)
    report, cost = callback.report(), module.cost()
    assert report.steps == 3
    assert report.seconds == {"data": 2, "forward": 5, "backward": 10, "optimizer": 3, "other": 50}
    assert report.steps_per_second == pytest.approx(3 / 20)
    assert report.tokens_per_second == pytest.approx(3 * 6 * cost.tokens / 20)  # of three processes
    assert report.flops_per_second == pytest.approx(3 * 6 * cost.training_flops / 20)
    assert report.flops_per_step == pytest.approx(3 * 2 * cost.training_flops)
    # the last two steps took 8 and 4 seconds, two clips each, on three processes
    assert logged["throughput/steps_per_second"] == pytest.approx(2 / 12)
    assert logged["throughput/tokens_per_second"] == pytest.approx(3 * 4 * cost.tokens / 12)
    assert logged["throughput/tflops_per_second"] == pytest.approx(3 * 4 * cost.training_flops / 12 / 1e12)


def test_rates_follow_the_shapes_of_the_batches(make_module, make_batch, make_trainer, monkeypatch):
    """Three clips of half the frames, two of all: each counts its own tokens and FLOPs; counting takes no time."""
    module, clock = make_module(), SimpleNamespace(now=0.0, steps=0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    cost = module.cost

    def slow(*shape):
        clock.now += 100
        return cost(*shape)

    monkeypatch.setattr(module, "cost", slow)
    callback, trainer = Throughput(every_n_steps=2), make_trainer()
    monkeypatch.setattr(type(trainer), "global_step", property(lambda _: clock.steps))
    callback.on_train_start(trainer, module)
    for batch in (make_batch("ab"), make_batch("abc", (2, 8, 8)), make_batch("ab")):
        clock.now += 5
        clock.steps += 1
        callback.on_train_batch_start(trainer, module, batch, 0)
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    monkeypatch.undo()
    usual, other = module.cost(), module.cost((2, 8, 8))
    assert usual.tokens == 2 * other.tokens and other.forward_flops < usual.forward_flops < 2 * other.forward_flops
    report = callback.report()
    assert report.tokens_per_second == pytest.approx((3 * other.tokens + 2 * usual.tokens) / 10)
    assert report.flops_per_second == pytest.approx((3 * other.training_flops + 2 * usual.training_flops) / 10)
    assert logged["throughput/tokens_per_second"] == pytest.approx((3 * other.tokens + 2 * usual.tokens) / 10)
    assert report.shapes == {
        "2x8x8": ShapeReport(1, 5.0, 3 * other.training_flops, 3 * other.attention_flops),
        "4x8x8": ShapeReport(1, 5.0, 2 * usual.training_flops, 2 * usual.attention_flops),
    }


def test_batches_that_accumulate_are_one_step(make_module, make_batch, make_trainer):
    callback, module = Throughput(every_n_steps=1), make_module()
    make_trainer(max_steps=4, accumulate_grad_batches=3, callbacks=[callback]).fit(module, batches(make_batch, 12))
    report = callback.report()
    assert report.steps == 3  # the first pays for the start
    each = module.step_cost(make_batch()).training_flops
    assert report.flops_per_step == 3 * 2 * each != 6 * module.cost().training_flops  # three batches of two clips


def test_a_real_run_is_timed(make_module, make_batch, make_trainer):
    callback = Throughput()
    make_trainer(max_steps=4, callbacks=[callback]).fit(make_module(), batches(make_batch, 4))
    report = callback.report()
    assert report.steps == 3
    assert all(report.seconds[phase] > 0 for phase in ("data", "forward", "backward", "optimizer"))


def test_a_loss_that_is_no_number_ends_training_before_a_good_checkpoint_is_lost(
    make_module, make_batch, make_trainer, tmp_path
):
    module = make_module()
    trainer = make_trainer(
        max_steps=6, callbacks=[FiniteLoss(every_n_steps=2), LastCheckpoint(str(tmp_path), 2)],
        plugins=[AtomicCheckpointIO()], enable_checkpointing=True,
    )  # fmt: skip
    poisoned = [make_batch("ab", number=n) for n in range(6)]
    poisoned[3].pixels[1].fill_(3e38)  # overflows in the model
    with pytest.raises(UserError, match=r"train/loss is nan and train/grad_norm is nan at step 4: .*optimizer.lr=0.05"
                       r".*First without a finite loss: 1 of the 2 clips of a batch, b\.$"):  # fmt: skip
        trainer.fit(module, poisoned)
    stored = load_checkpoint(tmp_path / "last.ckpt")
    assert stored["global_step"] == 2
    assert all(value.isfinite().all() for value in stored["state_dict"].values())


class Breaks(Callback):
    """Makes a weight infinite after a step, whose loss and gradients were fine; then asks the run to stop."""

    def __init__(self, step: int, stop: bool) -> None:
        self.step, self.stop = step, stop

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.denoiser.parameters()).view(-1)[0] = float("inf")
            if self.stop:
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("stop", "interval"), [(False, 3), (True, 1000)])
def test_weights_that_are_not_finite_replace_no_checkpoint(
    make_module, make_batch, make_trainer, tmp_path, stop, interval
):
    make = partial(
        make_trainer, max_steps=6, plugins=[AtomicCheckpointIO()], enable_checkpointing=True,
        val_check_interval=1, check_val_every_n_epoch=None,
    )  # fmt: skip
    best = ModelCheckpoint(
        str(tmp_path), "best", monitor="epoch", mode="max", save_top_k=1, enable_version_counter=False
    )
    first = make(callbacks=[best, LastCheckpoint(str(tmp_path), 1)], max_steps=2)
    first.fit(make_module(), batches(make_batch, 2), [make_batch("cd")])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    callbacks = [Breaks(3, stop), FiniteLoss(100), LastCheckpoint(str(tmp_path), interval)]
    with pytest.raises(UserError, match=r"a weight is not finite at step 3: .*Checkpoints of earlier steps are intact"):
        make(callbacks=callbacks).fit(make_module(), batches(make_batch, 6), ckpt_path=tmp_path / "last.ckpt")
    best = ModelCheckpoint(
        str(tmp_path), "best", monitor="epoch", mode="max", save_top_k=1, enable_version_counter=False
    )
    with pytest.raises(UserError, match="a weight is not finite at step 3"):
        make(callbacks=[Breaks(3, False), best, LastCheckpoint(str(tmp_path), 100)]).fit(
            make_module(), batches(make_batch, 6), [make_batch("cd")], ckpt_path=tmp_path / "last.ckpt"
        )
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_between_two_looks_is_not_saved(
    make_module, make_batch, make_trainer, tmp_path, accumulate
):
    trainer = make_trainer(
        max_steps=6, callbacks=[FiniteLoss(every_n_steps=100), LastCheckpoint(str(tmp_path), 1)],
        plugins=[AtomicCheckpointIO()], enable_checkpointing=True, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    poisoned = [make_batch("ab", number=n) for n in range(6 * accumulate)]
    poisoned[2 * accumulate].pixels.fill_(3e38)  # the first batch of the third step
    with pytest.raises(UserError, match=r"at step 3: the training has diverged.* 2 of the 2 clips of a batch, a, b\."):
        trainer.fit(make_module(), poisoned)
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


def test_finiteness_of_values():
    large = torch.full((4,), 3e38)
    assert all_finite([large, torch.tensor([1, 2]), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)])
    for value in ("nan", "inf", "-inf"):
        assert not all_finite([large, torch.tensor([1.0, float(value)])])
    assert all_finite([])
