"""Stopping a run from outside: SIGTERM to it or to all its processes, and the death of a process that loads data."""

import re
import signal

from .command import new_lab
from .tracked import equal, only, tracked, weights

STEPS = ("trainer.val_check_interval=50", "lr_schedule.warmup_steps=2", "callbacks.checkpoint.every_n_steps=1000",
         "callbacks.previews=null", "trainer.max_steps=12")  # fmt: skip

SENDER = '''
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class Sender(Callback):
    """After a batch, one signal from a rank: to itself, to its children, or to both."""

    def __init__(self, batch: int, rank: int, to: str, number: int) -> None:
        self.batch, self.rank, self.to, self.number = batch, rank, to, number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.number != self.batch or trainer.global_rank != self.rank:
            return
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in ([] if self.to == "me" else map(int, children)):
            os.kill(pid, self.number)
        if self.to != "children":
            os.kill(os.getpid(), self.number)

class Early(Callback):
    """Before the first step, one signal to itself."""

    def __init__(self, hook: str, number: int) -> None:
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), number))
'''
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def sending(lab, batch: int, to: str, number: int, rank: int = 0) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments and environment of a run that signals itself."""
    (lab.folder / "sender.py").write_text(SENDER)
    values = {"_target_": "sender.Sender", "batch": batch, "rank": rank, "to": to, "number": int(number)}
    arguments = tuple(f"+callbacks.sender.{key}={value}" for key, value in values.items())
    return arguments, {"PYTHONPATH": f"{lab.folder}:{lab.source}"}


def losses(lab) -> dict[tuple[str, int], float]:
    return {place: value for place, value in only(lab).curve.items() if place[0] == "train/loss"}


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_happened(lab, commands, empty_store, tmp_path):
    """To all processes of the run, the workers too, after the first of two accumulated batches."""
    settings = (*STEPS, "trainer.accumulate_grad_batches=2", "data.num_workers=2")
    whole = new_lab(commands, tmp_path / "whole", empty_store)
    assert whole.train(*settings).code == 0
    arguments, env = sending(lab, 14, "both", signal.SIGTERM)
    done = lab.train(*settings, *arguments, env=env)
    assert done.code == 143 and "Traceback" not in done.err, done.err
    (folder,) = lab.runs
    assert "Stopped by SIGTERM at step 8. Go on with: python train.py trainer=cpu" in done.message
    assert done.message.endswith(f"ckpt_path={folder.relative_to(lab.folder)}")
    assert only(lab).status == "KILLED" and losses(lab)
    assert weights(folder / "checkpoints" / "last.ckpt")["global_step"] == 8
    # the sender is no setting of the data or of the numbers, but who knows of a callback of one's own
    done = lab.train(*settings, f"ckpt_path={folder}", "accept_changes=true")
    assert done.code == 0, done.err
    assert losses(lab) == losses(whole) and only(lab).status == "FINISHED"
    assert equal(*(weights(each.runs[0] / "checkpoints" / "last.ckpt") for each in (lab, whole)))


def test_an_interrupt_reaches_the_workers_too_and_a_second_one_does_not_wait(lab):
    """As a terminal sends it, to all processes; then twice, after a checkpoint of an earlier step."""
    settings = (*STEPS[:2], *STEPS[3:], "callbacks.checkpoint.every_n_steps=3", "data.num_workers=1")
    arguments, env = sending(lab, 7, "both", signal.SIGINT)
    done = lab.train(*settings, *arguments, env=env)
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert weights(lab.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == 8
    again = [f"+callbacks.again.{word.removeprefix('+callbacks.sender.')}" for word in arguments]
    done = lab.train(*settings, *arguments, *again, env=env)
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert weights(lab.runs[1] / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert "Interrupted at step 8. Go on from step 6 with: python train.py trainer=cpu" in done.message
    assert [run.status for run in tracked(lab)] == ["KILLED", "KILLED"]


def test_a_run_stopped_before_its_first_step_is_marked(lab):
    (lab.folder / "sender.py").write_text(SENDER)
    env = {"PYTHONPATH": f"{lab.folder}:{lab.source}"}
    for hook, number, code in (("setup", signal.SIGINT, 130), ("on_validation_batch_end", signal.SIGTERM, 143)):
        early = ("+callbacks.early._target_=sender.Early", f"+callbacks.early.hook={hook}")
        done = lab.train(*STEPS, *early, f"+callbacks.early.number={int(number)}", env=env)
        assert done.code == code and "Traceback" not in done.err, done.err
    assert done.message == "Stopped by SIGTERM before the first step. There is no checkpoint yet."
    assert [run.status for run in tracked(lab)] == ["KILLED"], "the first came before the first batch of validation"
    assert len(list(lab.folder.glob("runs/vidlab/*"))) == 1


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(lab):
    arguments, env = sending(lab, 5, "me", signal.SIGTERM, rank=1)
    done = lab.train(*STEPS, *DDP, *arguments, env=env)
    assert done.code == 143 and "Traceback" not in done.err, done.err
    assert done.err.count("Stopped by SIGTERM at step 6.") == 1
    assert only(lab).status == "KILLED"
    # from two processes to one, in the middle of the epoch
    done = lab.train(*STEPS, f"ckpt_path={lab.runs[0]}", "accept_changes=true")
    assert done.code == 0, done.err
    assert "batches are 1 x 4 (processes x data.batch_size), and were 2 x 4" in done.out + done.err
    assert only(lab).status == "FINISHED" and {step for _, step in losses(lab)} == set(range(12))


def test_a_killed_worker_is_named_and_nothing_checkpointed_is_lost(lab):
    arguments, env = sending(lab, 6, "children", signal.SIGKILL)
    settings = (*STEPS, "data.num_workers=1", "trainer.max_steps=1000", "callbacks.checkpoint.every_n_steps=3")
    done = lab.train(*settings, *arguments, env=env)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    # by its signal, its absence, or a broken connection, whichever is noticed first
    assert re.match(
        r"(Process \d+, which loads data, (is killed by signal: Killed|exited unexpectedly)"
        r"|A process that loads data ended)\. Most often memory ran out",
        done.message,
    )
    assert "resume with ckpt_path=last" in done.message
    assert only(lab).status == "FAILED"
    done = lab.train(*settings, "trainer.max_steps=12", "ckpt_path=last", "accept_changes=true")
    assert done.code == 0, done.err
    assert only(lab).status == "FINISHED" and {step for _, step in losses(lab)} == set(range(12))
