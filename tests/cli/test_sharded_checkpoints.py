"""What a person does with the sharded checkpoints of trainer=fsdp2: all that is done with one file."""

import pytest

from vidlab import load
from vidlab.training.checkpoint_io import load_checkpoint, shards_in_use

from .command import Lab
from .tracked import only

TWO = ("trainer=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2", "model=2p1d", "callbacks.previews=null")
KILLED = """
import os, signal
from lightning.pytorch import Callback

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def full(*_, **__):
    raise OSError(28, "No space left on device")

class Spoiled(Callback):
    def __init__(self, by: str) -> None:
        self.write = {"killed": killed, "full": full}[by]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 3:
            import torch
            torch.save = self.write
"""
ENDS = {  # exit codes, a message, how many processes say it, and folders of shards that are left without a file
    "killed": ((2, -9), "Another process of this training ended", 1, 1),
    "full": ((2,), "last.ckpt could not be written ([Errno 28] No space left on device). Earlier", 2, 0),
}


def checkpoints(lab: Lab) -> list[str]:
    """What lies in the folder of checkpoints of the only run; folders of shards without their number."""
    (run,) = lab.runs
    places = [path for path in (run / "checkpoints").iterdir() if not path.name.startswith(".")]
    return sorted(path.name.rpartition("-")[0] + "/" if path.is_dir() else path.name for path in places)


def environment(lab: Lab) -> dict[str, str]:
    return {"PYTHONPATH": f"{lab.folder}:{lab.source}"}


@pytest.mark.slow
def test_everything_takes_a_sharded_checkpoint(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    often = ("callbacks.checkpoint.every_n_steps=1", "trainer.val_check_interval=2")
    done = lab.train(*TWO, *often, "trainer.max_steps=4", env=environment(lab))
    assert done.code == 0, done.err
    assert checkpoints(lab) == ["best.ckpt", "best.shards/", "last.ckpt", "last.shards/"]
    assert "shards       last.shards-" in done.out and " MB), best.shards-" in done.out
    (run,) = lab.runs
    files, step = (run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"), 4
    for reference in ("last", run, only(lab).run_id, *files):
        generated = lab.generate(f"checkpoint={reference}", "prompt=a red square", "num_videos=1")
        assert generated.code == 0, generated.err
    monkeypatch.chdir(lab.folder)
    assert load(run)("a red square").frames.shape[-1] == 3
    exported = lab.commands.run("vidlab.lab.export", str(run), "exported", cwd=lab.folder, module=True)
    assert exported.code == 0 and list((lab.folder / "exported").glob("*.safetensors")), exported.err
    started = lab.train("model=2p1d", "init=from_run", f"init.run={run}", "trainer.max_steps=1", "name=another")
    assert started.code == 0, started.err
    lab.commands.run_code("import shutil; shutil.rmtree('runs/another')", cwd=lab.folder)
    for words in (("model=2p1d", "callbacks.previews=null"), TWO):  # one process, whose file takes the place; and two
        step += 2
        resumed = lab.train(*words, *often, f"trainer.max_steps={step}", f"ckpt_path={run}", env=environment(lab))
        assert resumed.code == 0, resumed.err
        assert f"{step} in all" in resumed.out
        shards = ["last.shards/"] if words is TWO else []
        assert [name for name in checkpoints(lab) if name.startswith("last")] == ["last.ckpt", *shards]
        assert load_checkpoint(files[0])["global_step"] == step


@pytest.mark.slow
@pytest.mark.parametrize("by", ENDS)
def test_a_run_whose_shards_are_not_all_written_goes_on_from_those_before(lab: Lab, by: str) -> None:
    (lab.folder / "spoiled.py").write_text(KILLED)
    words = (*TWO, "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint_best=null")
    spoiled = ("+callbacks.spoiled._target_=spoiled.Spoiled", f"+callbacks.spoiled.by={by}")
    done = lab.train(*words, "trainer.max_steps=9", *spoiled, env=environment(lab))
    codes, message, times, left = ENDS[by]
    assert done.code in codes and done.err.count(message) == times and "Traceback" not in done.err, done.err
    (run,) = lab.runs
    last = run / "checkpoints" / "last.ckpt"
    assert load_checkpoint(last)["global_step"] == 2
    assert len([path for path in last.parent.glob("last.shards-*") if path.name != shards_in_use(last)]) == left
    again = ("accept_changes=true", f"ckpt_path={run}")  # without what spoils it
    done = lab.train(*words, "trainer.max_steps=4", *again, env=environment(lab))
    assert done.code == 0, done.err
    assert load_checkpoint(last)["global_step"] == 4 and checkpoints(lab) == ["last.ckpt", "last.shards/"]
