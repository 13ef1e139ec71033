import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib import metadata

from .command import REPOSITORY, new_lab
from .tracked import equal, only, tracked, weights

SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=2", "lr_schedule.warmup_steps=2")


def test_same_seed_same_numbers_whatever_the_workers(commands, empty_store, tmp_path):
    labs = [new_lab(commands, tmp_path / name, empty_store) for name in ("one", "again", "workers", "other")]
    changes = ([], [], ["data.num_workers=2"], ["seed=1"])
    for lab, change in zip(labs, changes, strict=True):
        done = lab.train(*SHORT, *change)
        assert done.code == 0, done.err
        assert "Traceback" not in done.err and "Warning" not in done.err, done.err
    one, again, workers, other = (only(lab).losses() for lab in labs)
    assert {step for name, step in one if name == "train/loss"} == {0, 1, 2, 3}
    assert one == again == workers
    assert all(one["train/loss", step] != other["train/loss", step] for step in range(4))
    last = [weights(lab.runs[0] / "checkpoints" / "last.ckpt") for lab in labs]
    assert equal(last[0], last[1]) and equal(last[0], last[2]) and not equal(last[0], last[3])


def test_what_a_run_leaves_behind(lab):
    done = lab.train(*SHORT)
    (folder,) = lab.runs
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "provenance.json", "run.json", "summary.json", "previews/step-000004.png"}
    assert wanted | {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "previews/step-000004.mp4"} <= names
    run = only(lab)
    assert run.status == "FINISHED"
    assert json.loads((folder / "run.json").read_text())["mlflow_run_id"] == run.run_id
    summary = json.loads((folder / "summary.json").read_text())
    last = max(step for name, step in run.curve if name == "val/loss")
    assert summary["steps"] == 4 and summary["last"]["val/loss"] == run.curve["val/loss", last]
    assert f"checkpoint={folder.relative_to(lab.folder)}" in done.out
    assert "and open http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning" in done.out
    assert "prompt='against a brown background, a large red box spins on the spot'" in done.out, "a held-out caption"
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database:
        tags = dict(database.execute("select key, value from tags"))
        (dataset,) = database.execute("select name, dataset_profile from datasets").fetchall()
    assert tags["mlflow.source.name"] == "train.py" and tags["vidlab.torch"] == metadata.version("torch")
    assert tags["vidlab.lightning"] == metadata.version("lightning")
    assert tags["vidlab.command"].startswith("python train.py trainer=cpu precision=32-true")
    assert tags["vidlab.command"] in tags["mlflow.note.content"]
    assert dataset == ("moving_shapes", '{"training clips": 64, "held-out clips": 8}')
    assert list(lab.folder.glob(f"mlruns/**/{run.run_id}/artifacts/provenance.json"))
    assert {name for name, _ in run.curve if "rate" in name or "lr" in name} == {"train/learning_rate"}


def test_jobs_of_a_sweep_train_with_seeds_of_their_own(lab):
    done = lab.train("-m", "model=full3d", "objective=flow_matching", "seed=0,1", "trainer.max_steps=2")
    assert done.code == 0, done.err
    parent, *children = tracked(lab)
    assert [run.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert len(lab.runs) == 0 and len(list(lab.folder.glob("runs/vidlab/*/*/run.json"))) == 2
    first, second = (run.curve["train/loss", 0] for run in children)
    assert first != second


def test_a_sweep_is_one_run_above_those_of_its_jobs_and_a_failed_job_is_recorded(lab):
    done = lab.train("-m", "trainer.max_steps=2", "data.frames=400,8", "data.source.frames=8")
    assert done.code == 2 and "Traceback" not in done.err
    assert "Job 0 failed: data.frames=400, data.frame_stride=1: 400 frames needed per clip" in done.err
    assert done.message.startswith("The sweep ended with failed jobs; the first: job 0: data.frames=400")
    (sweep,) = lab.folder.glob("runs/vidlab/*")
    assert f"Go on with: python train.py resume_sweep={sweep.name}" in done.err
    assert f"python -m vidlab.lab.compare {sweep.name}" in done.out
    record = json.loads((sweep / "sweep.json").read_text())
    failed, finished = record["jobs"]
    assert [job["state"] for job in record["jobs"]] == ["failed", "finished"] and not (sweep / "0").exists()
    assert failed["message"].startswith("data.frames=400") and failed["run_id"] is None
    last = json.loads((sweep / "1" / "summary.json").read_text())["last"]
    losses = [f"{last[name]:.4f}" for name in ("val/loss", "val/x0_mse")]
    rows = [line.split() for line in done.out[done.out.index("2 jobs:") :].splitlines()]
    place = sweep.relative_to(lab.folder)
    assert ["0", "400", "failed", "-", "-", f"{place}/0"] in rows
    assert ["1", "8", "finished", *losses, f"{place}/1"] in rows
    parent, child = tracked(lab)
    assert [parent.status, child.status] == ["FAILED", "FINISHED"]
    assert (parent.run_id, child.run_id) == (record["parent_run_id"], finished["run_id"])
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database:
        tags = {run: dict(database.execute("select key, value from tags where run_uuid = ?", (run,)))
                for run in (parent.run_id, child.run_id)}  # fmt: skip
    assert tags[child.run_id]["mlflow.parentRunId"] == parent.run_id
    assert tags[child.run_id]["vidlab.sweep"] == tags[parent.run_id]["vidlab.sweep"] == sweep.name
    assert tags[parent.run_id]["vidlab.job.1"] == "finished: data.frames=8"
    assert tags[parent.run_id]["vidlab.job.0"].startswith("failed: data.frames=400: data.frames=400, ")
    (kept,) = lab.folder.glob(f"mlruns/vidlab/{parent.run_id}/artifacts/sweep/table.md")
    assert kept.read_text() == (sweep / "table.md").read_text()
    done = lab.train("-m", "seed=0,1", f"ckpt_path={sweep / '1'}")
    assert done.code == 2 and "a run is continued by one command, not by the jobs of a sweep" in done.message
    assert list(lab.folder.glob("runs/vidlab/*")) == [sweep]


def test_interrupt_saves_and_says_how_to_go_on(lab):
    """Before any interval of checkpoints: without the interrupt there is no last.ckpt."""
    settings = ("trainer.max_steps=100000", "callbacks.checkpoint.every_n_steps=100000")
    running = lab.start_train(*settings, "trainer.val_check_interval=2")
    done = running.stop_when("runs/*/*/checkpoints/best.ckpt", lab.folder, signal.SIGINT)
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert "Interrupted: training ends after this step, with a checkpoint." in done.err
    (folder,) = lab.runs
    saved = weights(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert f"Interrupted at step {saved}. Go on with: python train.py trainer=cpu" in done.message
    assert done.message.endswith(f"ckpt_path={folder.relative_to(lab.folder)}")
    assert only(lab).status == "KILLED" and saved >= 2


def test_help_names_the_groups_and_their_choices():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", "--help"], capture_output=True, text=True, check=True
    )
    assert re.search(r"  model: +2p1d, full3d", done.stdout) and "max_steps: 680" in done.stdout
