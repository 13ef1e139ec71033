"""A sweep of real trainings, stopped at any moment: ``resume_sweep=last`` ends it as if nothing had happened."""

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from .command import Commands, Done, Lab
from .test_kills import SIGNALS, Whole, ended, fresh, own_cache, timed
from .tracked import tracked

COUNT = 12
WORDS = (
    *("-m", "seed=0,1", "trainer.max_steps=6", "callbacks.previews=null", "trainer.val_check_interval=3"),
    *("callbacks.checkpoint.every_n_steps=2", "lr_schedule.warmup_steps=2"),
)


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    lab = fresh(commands, tmp_path_factory.mktemp("sweep") / "whole")
    return timed(lab, lambda: lab.train(*WORDS, env=own_cache(lab)))


def begun(lab: Lab) -> list[Path]:
    return list(lab.folder.glob("runs/vidlab/*/sweep.json"))


def go_on(lab: Lab) -> Done:
    if begun(lab):
        return lab.commands.run("train.py", "resume_sweep=last", cwd=lab.folder, env=own_cache(lab))
    return lab.train(*WORDS, env=own_cache(lab))


def ended_as(lab: Lab, whole: Lab) -> None:
    """The same numbers in the table and in the runs that MLflow shows, and one run for the sweep and each job."""
    tables = [json.loads((begun(one)[-1].parent / "table.json").read_text()) for one in (lab, whole)]
    assert tables[0] == tables[1]
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database:
        shown = {one for (one,) in database.execute("select run_uuid from runs where lifecycle_stage = 'active'")}
    runs = [run for run in tracked(lab) if run.run_id in shown]
    assert [run.status for run in runs] == ["FINISHED"] * 3
    assert sorted(map(len, (run.losses() for run in runs))) == sorted(map(len, (r.losses() for r in tracked(whole))))
    assert not list(begun(lab)[-1].parent.rglob(".*.tmp"))


@pytest.mark.kills
@pytest.mark.parametrize("number", range(COUNT))
def test_a_sweep(commands, undisturbed, tmp_path, number):
    lab = fresh(commands, tmp_path / "work")
    kind = list(SIGNALS)[number % 3]
    running = lab.start_train(*WORDS, env=own_cache(lab))
    time.sleep((number + 0.5) / COUNT * undisturbed.seconds)
    ended(running, kind)
    done = go_on(lab)
    assert done.code == 0 and "Traceback" not in done.err, done.err
    ended_as(lab, undisturbed.lab)


@pytest.mark.kills
def test_a_sweep_killed_whenever_it_has_written_its_record(commands, undisturbed, tmp_path):
    lab = fresh(commands, tmp_path / "work")
    for pattern in ("sweep.json", "jobs/0.json", "0/checkpoints/last.ckpt", "jobs/1.json", "1/summary.json"):
        if begun(lab):
            running = lab.commands.start("train.py", "resume_sweep=last", cwd=lab.folder, env=own_cache(lab))
        else:
            running = lab.start_train(*WORDS, env=own_cache(lab))
        done = running.stop_when(f"runs/vidlab/*/{pattern}", lab.folder, signal.SIGKILL)
        assert done.code in (-9, 0), done.err
    assert go_on(lab).code == 0
    ended_as(lab, undisturbed.lab)
