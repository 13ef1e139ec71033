"""Stopping a run from outside: SIGTERM to it or to all its processes, and the death of a process that loads data."""

import os
import signal
import time
from pathlib import Path

import pytest

from .command import new_lab
from .tracked import equal, only, weights

STEPS = ("trainer.val_check_interval=50", "lr_schedule.warmup_steps=2", "callbacks.checkpoint.every_n_steps=1000",
         "callbacks.previews=null", "trainer.max_steps=60")  # fmt: skip

# Sends a signal to processes of the run after a step: itself, the workers, another rank.
SENDER = '''
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class Sender(Callback):
    """After so many steps, one signal: to this rank, to its children, or to both."""

    def __init__(self, step: int, rank: int, to: str, number: int) -> None:
        self.step, self.rank, self.to, self.number = step, rank, to, number

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in ([] if self.to == "me" else map(int, children)):
            os.kill(pid, self.number)
        if self.to != "children":
            os.kill(os.getpid(), self.number)
'''
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def sending(lab, to: str, number: int, step: int = 7, rank: int = 0) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments and environment of a run that signals itself."""
    (lab.folder / "sender.py").write_text(SENDER)
    values = {"_target_": "sender.Sender", "step": step, "rank": rank, "to": to, "number": int(number)}
    arguments = tuple(f"+callbacks.sender.{key}={value}" for key, value in values.items())
    return arguments, {"PYTHONPATH": f"{lab.folder}:{lab.source}"}


@pytest.fixture
def whole(commands, empty_store, tmp_path):
    """The same run, undisturbed."""

    def run(*settings):
        lab = new_lab(commands, tmp_path / "whole", empty_store)
        done = lab.train(*STEPS, *settings)
        assert done.code == 0, done.err
        return lab

    return run


@pytest.mark.parametrize(
    ("to", "settings"),
    [("me", ("trainer.accumulate_grad_batches=2",)), ("both", ("data.num_workers=2",))],
)
def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_happened(lab, whole, to, settings):
    """After the step in progress, with gradients accumulated in part, and when the workers get the signal too."""
    reference = whole(*settings)
    arguments, env = sending(lab, to, signal.SIGTERM)
    done = lab.train(*STEPS, *settings, *arguments, env=env)
    assert done.code == 143 and "Traceback" not in done.err, done.err
    (folder,) = lab.runs
    assert f"Stopped by SIGTERM at step {7 if to == 'both' else 8}. Go on with: python train.py " in done.err
    assert f"ckpt_path={folder}" in done.message
    assert only(lab).status == "KILLED"
    stopped_at = weights(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert 7 <= stopped_at <= 8
    assert {step for name, step in only(lab).curve if name == "train/loss"}, "the last step is logged"
    done = lab.train(*STEPS, *settings, f"ckpt_path={folder}")
    assert done.code == 0, done.err
    assert only(lab).losses() == only(reference).losses() and only(lab).status == "FINISHED"
    assert equal(*(weights(each.runs[0] / "checkpoints" / "last.ckpt") for each in (lab, reference)))
