import pytest

from .command import new_lab
from .tracked import equal, only, weights

STEPS = ("trainer.val_check_interval=6", "lr_schedule.warmup_steps=2", "callbacks.checkpoint.every_n_steps=3")


@pytest.mark.parametrize("settings", [(), ("trainer.accumulate_grad_batches=2", "data.num_workers=1")])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(commands, empty_store, tmp_path, settings):
    whole, killed = (new_lab(commands, tmp_path / name, empty_store) for name in ("whole", "killed"))
    arguments = (*STEPS, *settings, "trainer.max_steps=40")
    assert whole.train(*arguments).code == 0
    running = killed.start_train(*arguments)
    assert running.stop_when("runs/*/*/checkpoints/last.ckpt", killed.folder).code == -9
    assert only(killed).status == "RUNNING"
    stopped_at = weights(killed.runs[0] / "checkpoints" / "last.ckpt")["global_step"]
    assert 3 <= stopped_at < 40
    done = killed.train(*arguments, "ckpt_path=last")
    assert done.code == 0, done.err
    assert len(killed.runs) == 1 and len(list(killed.folder.glob("runs/*/*"))) == 1
    expected, continued = only(whole), only(killed)
    assert (expected.status, continued.status) == ("FINISHED", "FINISHED")
    assert expected.losses(stopped_at) == continued.losses(stopped_at)
    assert len(continued.losses(stopped_at)) > 40 - stopped_at
    assert equal(*(weights(lab.runs[0] / "checkpoints" / "last.ckpt") for lab in (whole, killed)))


def test_a_finished_run_can_be_made_longer(lab):
    assert lab.train(*STEPS, "trainer.max_steps=6").code == 0
    run_id = only(lab).run_id
    for reference, steps in ((run_id, 9), (str(lab.runs[0]), 12)):
        done = lab.train(*STEPS, f"trainer.max_steps={steps}", f"ckpt_path={reference}")
        assert done.code == 0, done.err
        assert weights(lab.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == steps
    run = only(lab)
    assert run.run_id == run_id and run.status == "FINISHED" and len(lab.runs) == 1
    assert {step for name, step in run.curve if name == "train/loss"} == set(range(12))


def test_a_resumed_run_takes_the_rate_and_the_schedule_that_are_asked_for(lab):
    rate = ("lr_schedule=linear_decay", "lr_schedule.warmup_steps=0", "callbacks.checkpoint.every_n_steps=3")
    assert lab.train(*rate, "trainer.max_steps=3", "optimizer.lr=0.1", "optimizer.clip_norm=0.001").code == 0
    assert lab.train(*rate, "trainer.max_steps=5", "optimizer.lr=0.01", "ckpt_path=last").code == 0
    curve = only(lab).curve
    logged = [curve["lr-MuonWithAdamW/pg1", step] for step in range(5)]
    assert logged == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3, 0.01 * 2 / 5, 0.01 / 5])


def test_what_cannot_be_resumed_is_said(lab):
    assert lab.train(*STEPS, "trainer.max_steps=3").code == 0
    checkpoint = lab.runs[0] / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    for change, message in (
        ("model.backbone.width=24", "backbone.embed.weight, (48, 192) in the checkpoint and (24, 192) here"),
        ("model.backbone.depth=2", "absent in the checkpoint"),
        ("data.batch_size=2", "trained with batch_size=4 (data.batch_size), this run has 2"),
        ("seed=5", "trained with seed=0 (seed), this run has 5"),
    ):
        done = lab.train(*STEPS, "trainer.max_steps=6", "ckpt_path=last", change)
        assert done.code == 2, done.err
        assert message in done.message and "Traceback" not in done.err
        assert only(lab).status == "FAILED"
    assert checkpoint.read_bytes() == before
    broken = lab.folder / "broken.ckpt"
    broken.write_bytes(before[: len(before) // 2])
    done = lab.train("ckpt_path=broken.ckpt")
    assert done.code == 2 and "broken.ckpt cannot be read as a checkpoint" in done.message
