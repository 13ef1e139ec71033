import json
import signal
import time
from collections.abc import Callable
from random import Random

import pytest

from .command import new_lab
from .tracked import Curve, Tracked, equal, only, weights

STEPS = ("trainer.val_check_interval=6", "lr_schedule.warmup_steps=2", "callbacks.checkpoint.every_n_steps=3")


@pytest.mark.parametrize(
    "settings",
    [pytest.param((), marks=pytest.mark.slow), ("trainer.accumulate_grad_batches=2", "data.num_workers=1")],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(commands, empty_store, tmp_path, settings):
    whole, killed = (new_lab(commands, tmp_path / name, empty_store) for name in ("whole", "killed"))
    arguments = (*STEPS, *settings, "trainer.max_steps=24")
    assert whole.train(*arguments).code == 0
    running = killed.start_train(*arguments)
    assert running.stop_when("runs/*/*/checkpoints/last.ckpt", killed.folder).code == -9
    assert only(killed).status == "RUNNING"
    stopped_at = weights(killed.runs[0] / "checkpoints" / "last.ckpt")["global_step"]
    assert 3 <= stopped_at < 24
    done = killed.train(*arguments, "ckpt_path=last")
    assert done.code == 0, done.err
    assert len(killed.runs) == 1 and len(list(killed.folder.glob("runs/*/*"))) == 1
    expected, continued = only(whole), only(killed)
    assert (expected.status, continued.status) == ("FINISHED", "FINISHED")
    assert expected.losses(stopped_at) == continued.losses(stopped_at)
    assert training_losses(expected) == training_losses(continued)  # those before the kill, too
    assert len(continued.losses(stopped_at)) > 24 - stopped_at
    assert equal(*(weights(lab.runs[0] / "checkpoints" / "last.ckpt") for lab in (whole, killed)))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_kills_at_random_moments_lose_nothing(commands, empty_store, tmp_path, kills):
    """Saving every other step with workers decoding, so that kills fall into steps, writes, starts and resumes."""
    whole, killed = (new_lab(commands, tmp_path / name, empty_store) for name in ("whole", "killed"))
    arguments = (
        *("callbacks.previews=null", "trainer.val_check_interval=1000", "lr_schedule.warmup_steps=2"),
        *("callbacks.checkpoint.every_n_steps=2", "data.num_workers=1", f"trainer.max_steps={30 * kills}"),
    )
    assert whole.train(*arguments).code == 0
    random, done = Random(kills), 0
    while done < kills:
        saved = newest(killed)
        running = killed.start_train(*arguments, *(["ckpt_path=last"] if saved else []))
        if random.random() < 0.8 or not saved:  # otherwise wherever the start has got to
            wait_until(lambda saved=saved: newest(killed) != saved)
        time.sleep(random.uniform(0, 0.4))
        running.send(signal.SIGKILL)
        assert running.wait().code == -9
        done += 1
    finished = killed.train(*arguments, "ckpt_path=last")
    assert finished.code == 0, finished.err
    assert equal(*(weights(lab.runs[0] / "checkpoints" / "last.ckpt") for lab in (whole, killed)))
    assert training_losses(only(killed)) == training_losses(only(whole))
    assert [path.name for path in (killed.runs[0] / "checkpoints").iterdir() if path.name.endswith(".tmp")] == []


def training_losses(run: Tracked) -> Curve:
    return {place: value for place, value in run.curve.items() if place[0] == "train/loss"}


def newest(lab) -> int | None:
    """When the run last wrote its checkpoint."""
    return next((path.stat().st_mtime_ns for path in lab.folder.glob("runs/*/*/checkpoints/last.ckpt")), None)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_finished_run_can_be_made_longer(lab):
    assert lab.train(*STEPS, "trainer.max_steps=6").code == 0
    run_id = only(lab).run_id
    for reference, steps in ((run_id, 8), (str(lab.runs[0]), 12)):
        done = lab.train(*STEPS, f"trainer.max_steps={steps}", f"ckpt_path={reference}")
        assert done.code == 0, done.err
        assert weights(lab.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == steps
    assert done.out.count("Trained 4 steps in ") == 1 and "s, 12 in all." in done.out
    run = only(lab)
    assert run.run_id == run_id and run.status == "FINISHED" and len(lab.runs) == 1
    assert {step for name, step in run.curve if name == "train/loss"} == set(range(12))
    # one that has taken its steps says so and stays as it is; without a summary it gets one
    folder, arguments = lab.runs[0], (*STEPS, "trainer.max_steps=12", "ckpt_path=last")
    before = {path: path.read_bytes() for path in (folder / "summary.json", folder / "checkpoints" / "last.ckpt")}
    done = lab.train(*arguments)
    assert done.code == 0 and "has already taken 12 steps, and trainer.max_steps=12 asks for no more" in done.out
    assert {path: path.read_bytes() for path in before} == before and only(lab) == run
    (folder / "summary.json").unlink()
    leftover = folder / "checkpoints" / ".last.ckpt.4194305.tmp"  # no process has such a number
    leftover.touch()
    assert lab.train(*arguments).code == 0 and not leftover.exists()
    expected, found = (
        json.loads(text) for text in (before[folder / "summary.json"], (folder / "summary.json").read_text())
    )
    assert found["steps"] == 12 and found["last"]["val/loss"] == pytest.approx(expected["last"]["val/loss"], rel=1e-5)


def test_a_run_is_not_resumed_while_it_is_trained(lab):
    running = lab.start_train(*STEPS, "trainer.max_steps=100000")
    wait_until(lambda: newest(lab))
    running.send(signal.SIGSTOP)  # so that nobody else changes its folder
    before = {path: path.read_bytes() for path in sorted(lab.runs[0].rglob("*")) if path.is_file()}
    assert ".hydra" in {path.parent.name for path in before}
    done = lab.train(*STEPS, "trainer.max_steps=100000", "ckpt_path=last", "optimizer.lr=0.5")
    assert done.code == 2 and f"is being trained by process {running.pid} on" in done.message, done.err
    assert {path: path.read_bytes() for path in sorted(lab.runs[0].rglob("*")) if path.is_file()} == before
    assert len(list(lab.folder.glob("runs/*/*"))) == 1
    running.send(signal.SIGKILL)
    assert running.wait().code == -9
    assert lab.train(*STEPS, "trainer.max_steps=3", "ckpt_path=last").code == 0


def test_a_resumed_run_takes_the_rate_and_the_schedule_that_are_asked_for(lab):
    rate = (
        "lr_schedule=linear_decay",
        "lr_schedule.warmup_steps=0",
        "optimizer.clip_norm=0.001",
        "callbacks.checkpoint.every_n_steps=3",
    )
    assert lab.train(*rate, "trainer.max_steps=3", "optimizer.lr=0.1").code == 0
    assert lab.train(*rate, "trainer.max_steps=5", "optimizer.lr=0.01", "ckpt_path=last").code == 0
    curve = only(lab).curve
    logged = [curve["train/learning_rate", step] for step in range(5)]
    assert [name for name, step in curve if "lr" in name or "rate" in name] == ["train/learning_rate"] * 5
    assert logged == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3, 0.01 * 2 / 5, 0.01 / 5])


def test_what_cannot_be_resumed_is_said(lab):
    assert lab.train(*STEPS, "trainer.max_steps=3").code == 0
    checkpoint = lab.runs[0] / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    recorded = {path: path.read_bytes() for path in (lab.runs[0] / ".hydra").iterdir()}
    for changes, messages in (
        (("model.backbone.width=24", "seed=5"),
         ("2 settings differ", "seed: 0 in the checkpoint, 5 here", "width: 48 in the checkpoint, 24 here")),
        (("trainer.accumulate_grad_batches=2", "+trainer.gradient_clip_val=1"),
         ("accumulate_grad_batches: 1 in the checkpoint, 2 here", "gradient_clip_val: absent in the checkpoint, 1")),
        (("callbacks.ema=null",), ("callbacks.ema.decay: 0.9999 in the checkpoint, absent here",)),
    ):  # fmt: skip
        done = lab.train(*STEPS, "trainer.max_steps=6", "ckpt_path=last", *changes)
        assert done.code == 2 and "Traceback" not in done.err, done.err
        assert all(message in done.err for message in messages), done.err
        assert done.message == "Set them back, or go on with them on purpose: accept_changes=true"
        assert only(lab).status == "FINISHED"  # nothing was touched
        assert len(recorded) == 3 and all(path.read_bytes() == content for path, content in recorded.items())
        (line,) = [line for line in done.err.splitlines() if line.startswith("With the run's own settings: ")]
        assert line.endswith(" trainer.max_steps=6 ckpt_path=last") and not any(word in line for word in changes)
        assert all(word in line for word in STEPS) and "trainer.max_steps=3" not in line
    done = lab.train(*STEPS, "trainer.max_steps=6", "ckpt_path=last", "model.backbone.width=24", "accept_changes=true")
    assert done.code == 2 and "backbone.embed.weight, (48, 192) in the checkpoint and (24, 192) here" in done.message
    assert checkpoint.read_bytes() == before
    broken = lab.folder / "broken.ckpt"
    broken.write_bytes(before[: len(before) // 2])
    done = lab.train("ckpt_path=broken.ckpt")
    assert done.code == 2 and "broken.ckpt cannot be read as a checkpoint" in done.message


def test_changes_are_accepted_on_purpose_and_free_ones_need_no_word(lab):
    assert lab.train(*STEPS, "trainer.max_steps=3").code == 0
    free = (
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.previews=null",
        "data.num_workers=1",
        "data.batch_size=2",
    )
    done = lab.train(*STEPS[:2], *free, "trainer.max_steps=5", "ckpt_path=last")
    assert done.code == 0, done.err
    assert "batches are 1 x 2 (processes x data.batch_size), and were 1 x 4" in done.out + done.err
    done = lab.train(*STEPS[:2], *free, "trainer.max_steps=7", "ckpt_path=last", "seed=5", "accept_changes=true")
    assert done.code == 0, done.err
    assert "seed: 0 in the checkpoint, 5 here" in done.out + done.err
    assert "a new epoch begins" in done.out + done.err
    run = only(lab)
    assert {step for name, step in run.curve if name == "train/loss"} == set(range(7))
