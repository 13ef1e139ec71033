import json
import os
import signal
import time
from pathlib import Path

import pytest

from .command import new_lab
from .tracked import only, tracked

SPY = '''
import hashlib, json
from pathlib import Path
from lightning.pytorch import Callback

class Spy(Callback):
    """Writes down what each rank saw and ended with."""

    def __init__(self, folder: str) -> None:
        self.folder, self.keys = Path(folder), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keys.extend(batch.keys)

    def on_train_end(self, trainer, pl_module):
        bits = b"".join(p.detach().float().numpy().tobytes() for p in pl_module.parameters())
        record = {"keys": self.keys, "weights": hashlib.sha256(bits).hexdigest()}
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))
'''


PRECISIONS = ("32-true", "bf16-true", "64-true")
EVERY_MODEL = [  # with every conditioning, and with every precision
    (model, conditioning, PRECISIONS[(number + place) % 3])
    for number, model in enumerate(("2p1d", "full3d", "open_sora_plan", "skip_window", "skiparse", "stiv"))
    for place, conditioning in enumerate(("none", "frame_replacement", "masked_video"))
]


@pytest.mark.parametrize(
    ("model", "conditioning", "precision"),
    [
        ("open_sora_plan", "none", "32-true"),  # reads no pooled text, which no gradient then reaches
        *(pytest.param(*row, marks=pytest.mark.slow) for row in EVERY_MODEL),
    ],
)
def test_two_processes_share_the_clips_and_agree(lab, model, conditioning, precision):
    (lab.folder / "spy.py").write_text(SPY)
    done = lab.train(
        "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=3", f"model={model}",
        f"conditioning={conditioning}", f"precision={precision}",
        "+callbacks.spy._target_=spy.Spy", f"+callbacks.spy.folder={lab.folder}",
        env={"PYTHONPATH": f"{lab.folder}:{lab.source}"},
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    first, second = (json.loads((lab.folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["keys"]) == len(second["keys"]) == 12
    assert len({*first["keys"], *second["keys"]}) == 24
    assert first["weights"] == second["weights"]
    assert only(lab).status == "FINISHED" and len(lab.runs) == 1
    assert done.out.count("Trained 3 steps") == 1


def test_two_processes_train_as_one_with_twice_the_batch(commands, empty_store, tmp_path):
    """Frames are known in half the clips, so that ranks have different numbers of elements that count."""
    known = ("conditioning=frame_replacement", "conditioning.image_dropout=0.5", "trainer.max_steps=3")
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2")
    curves = []
    for name, words in (("one", ()), ("two", ranks), ("accumulated", ("trainer.accumulate_grad_batches=4",))):
        lab = new_lab(commands, tmp_path / name, empty_store)
        batch = ("data.batch_size=1",) if name == "accumulated" else ()
        done = lab.train("optimizer=adamw", "callbacks.previews=null", *known, *words, *batch)
        assert done.code == 0, done.err
        curves.append(only(lab).losses())
    one, two, accumulated = curves
    assert {step for name, step in one if name == "train/loss"} == {0, 1, 2}
    assert two == pytest.approx(one, rel=1e-4) and accumulated == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_a_job_of_a_sweep_starts_its_processes_once(lab):
    """And a job that cannot be trained fails alone, with its own message."""
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    done = lab.train("-m", *ranks, "trainer.max_steps=2", "model=full3d,2p1d", "+data.none=1",
                     env={"PYTHONPATH": str(lab.source)})  # fmt: skip
    assert done.code == 2 and done.err.count("has no setting 'none'") > 2 and not list(lab.folder.glob("runs/vidlab/*"))
    done = lab.train("-m", *ranks, "trainer.max_steps=2", "model=full3d,2p1d", "callbacks.previews=null",
                     env={"PYTHONPATH": str(lab.source)})  # fmt: skip
    assert done.code == 0 and "Traceback" not in done.err, done.err
    (sweep,) = lab.folder.glob("runs/vidlab/*")
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job["state"] for job in jobs] == ["finished", "finished"]
    assert done.out.count("Trained 2 steps") == 2 and len(list(sweep.glob("*/summary.json"))) == 2
    parent, *children = tracked(lab)[-3:]
    assert {run.status for run in (parent, *children)} == {"FINISHED"}
    assert [run.run_id for run in children] == [job["run_id"] for job in jobs]
    assert all({step for name, step in run.curve if name == "train/loss"} == {0, 1} for run in children)


KILLED = """
import os, signal
from lightning.pytorch import Callback

class Killed(Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_start(self, trainer, pl_module):
        open(f"process-{trainer.global_rank}", "w").write(str(os.getpid()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_process_is_killed_the_other_ends_with_one_message(lab, trainer, rank):
    (lab.folder / "killed.py").write_text(KILLED)
    running = lab.start_train(
        f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=200", "model=2p1d",
        "+callbacks.killed._target_=killed.Killed", f"+callbacks.killed.rank={rank}",
        env={"PYTHONPATH": f"{lab.folder}:{lab.source}"},
    )  # fmt: skip
    code = running.wait().code
    for place in (0, 1):  # the second process may outlive the first, which was waited for
        wait_for_end(int((lab.folder / f"process-{place}").read_text()))
    messages = running.messages()
    assert code in ((-9,) if rank == 0 else (2, -9)), messages  # Lightning kills what it has started
    assert messages.count("Another process of this training ended") == 1, messages
    assert "Traceback" not in messages


def wait_for_end(pid: int, seconds: float = 60) -> None:
    """Until a process, which need not be a child of this one, is gone or only its exit code is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if status.rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError(f"process {pid} goes on")
