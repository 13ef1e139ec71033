"""Sweeps from command to table, of jobs that train nothing, in processes that are forked for each command."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import vidlab
import vidlab.lab.cli.hydra_main
import vidlab.lab.sweeps.grid
import vidlab.lab.tracking.mlflow_logger  # once, not in every process that is forked
from vidlab.lab.sweeps.record import SweepRecord, read_sweep
from vidlab.lab.tracking.store import open_client

APP = Path(__file__).with_name("app.py")
fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Done:
    """A command that has ended, by itself (0 or more) or by a signal."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Bench:
    """A working folder and what a person types in it."""

    folder: Path

    def run(self, *arguments: str) -> Done:
        process = fork.Process(target=execute, args=(self.folder, arguments))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        return Done(process.exitcode, *((self.folder / name).read_text() for name in ("out", "err")))

    @property
    def sweep(self) -> Path:
        (found,) = self.folder.glob("runs/app/*")
        return found

    def read(self) -> SweepRecord:
        return read_sweep(self.sweep)

    def states(self) -> list[str]:
        return [job.state for job in self.read().jobs]

    def trained(self) -> list[str]:
        """What jobs have written that ended well, as they ended."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


def execute(folder: Path, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(APP), *arguments]
    runpy.run_path(str(APP), run_name="__main__")


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def table_of(done: Done) -> list[list[str]]:
    """The cells of the table that was printed, without folders."""
    lines = done.out[done.out.index(" jobs:") :].split("\n\n")[0].splitlines()[1:]
    return [line.split()[:-1] for line in lines]


def test_a_sweep_is_recorded_and_says_what_comes_next(bench):
    done = bench.run("-m", "x=plain,other", "y=0,1")
    assert done.code == 0, done.err
    record = json.loads((bench.sweep / "sweep.json").read_text())
    assert record["id"] == bench.sweep.name and record["arguments"] == ["x=plain,other", "y=0,1"]
    assert [job["overrides"] for job in record["jobs"]][2] == ["x=other", "y=0"]
    assert [job["folder"] for job in record["jobs"]] == ["0", "1", "2", "3"] and record["parent_run_id"] is None
    assert table_of(done)[:2] == [["job", "x", "y", "val/loss"], ["0", "plain", "0", "5.0000"]]
    assert f"Next:\n  python -m vidlab.lab.compare {record['id']}\n" in done.out
    assert f"{bench.sweep.relative_to(bench.folder)}/table.md" in done.out and not done.err


def test_a_failed_job_is_recorded_and_only_it_is_run_again(bench):
    done = bench.run("-m", "x=plain,bug,other")
    assert done.code == 2 and bench.states() == ["finished", "failed", "finished"]
    assert bench.read().jobs[1].message == "RuntimeError: a bug, in two lines"
    assert f"Go on with: python train.py resume_sweep={bench.sweep.name}" in done.err
    assert "The sweep ended with failed jobs; the first: job 1: RuntimeError: a bug" in done.err
    assert bench.run("resume_sweep=last").code == 0
    assert bench.trained() == ["plain 0 False", "other 0 False", "bug 0 False"], "without a checkpoint, from the start"
    again = bench.run("-m", f"resume_sweep={bench.sweep.name}")
    assert again.code == 0 and len(bench.trained()) == 3 and table_of(again)[2] == ["1", "bug", "3.0000"]


@pytest.mark.parametrize(
    ("sent", "code"), [("SIGKILL", -9), pytest.param("SIGTERM", 143, marks=pytest.mark.slow), ("SIGINT", 130)]
)
def test_a_stopped_sweep_goes_on_and_ends_with_the_table_of_an_undisturbed_one(bench, sent, code):
    done = bench.run("-m", "x=plain,saved,other,more", f"sent={sent}")
    assert done.code == code and bench.states() == ["finished", "interrupted", "planned", "planned"]
    told = f"1 finished, 1 interrupted. Go on with: python train.py resume_sweep={bench.sweep.name}\n"
    assert sent == "SIGKILL" or f": 2 planned, {told}" in done.err
    done = bench.run("resume_sweep=last")
    assert done.code == 0, done.err
    assert bench.trained() == ["plain 0 False", "saved 0 True", "other 0 False", "more 0 False"]
    expected = [[str(number), x, f"{len(x):.4f}"] for number, x in enumerate(("plain", "saved", "other", "more"))]
    assert table_of(done) == [["job", "x", "val/loss"], *expected]


def test_a_record_that_was_being_written_is_the_one_before(bench):
    assert bench.run("-m", "x=plain,signal,other").code == -9
    (bench.sweep / ".sweep.json.4194305.tmp").write_text('{"id": ')
    (bench.sweep / "jobs" / ".1.json.4194305.tmp").write_text('{"numb')
    assert bench.run("resume_sweep=last").code == 0
    assert sorted(bench.trained()) == ["other 0 False", "plain 0 False", "signal 0 False"]


def test_a_sweep_of_mistakes_leaves_nothing(bench):
    done = bench.run("-m", "x=mistake", "y=0,1")
    assert done.code == 2 and "the first: job 0: x must not be a mistake" in done.err
    assert not list(bench.folder.glob("runs/app/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume_sweep=nosuch"], "resume_sweep=nosuch: there is no such sweep in "),
        (["resume_sweep=last", "x=other,more"], "x=other,more was no part of that. Leave it out; or begin a new sweep: "
         "python train.py -m x=other,more"),
        (["resume_sweep=last", "name=else"], "resume_sweep=last: there is no such sweep of experiment 'else' in "),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(bench, arguments, message):
    bench.run("-m", "x=plain,other")
    done = bench.run(*arguments)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert len(bench.trained()) == 2


def test_settings_said_again_are_taken_and_the_launcher_may_change(bench):
    bench.run("-m", "x=plain,bug", "y=2")
    done = bench.run("x=plain,bug", f"resume_sweep={bench.sweep}", "-m", "hydra.sweeper.max_batch_size=1")
    assert done.code == 0 and bench.trained() == ["plain 2 False", "bug 2 False"]


def test_one_command_runs_a_sweep_at_a_time(bench):
    bench.run("-m", "x=plain,bug")
    ready, there = fork.Pipe()
    holder = fork.Process(target=hold, args=(bench.sweep, there), daemon=True)
    holder.start()
    assert ready.poll(30)
    done = bench.run("resume_sweep=last")
    holder.kill()
    holder.join()
    assert done.code == 2 and f"this sweep is being run by process {holder.pid} on " in done.err
    assert bench.run("resume_sweep=last").code == 0


def hold(sweep: Path, ready) -> None:
    from vidlab.lab.runs.run_lock import held_lock

    with held_lock(sweep / "sweep.lock", "this sweep is being run"):
        ready.send(True)
        signal.pause()


def test_a_job_that_is_continued_by_itself_counts(bench):
    """By the command that a stopped run prints."""
    bench.run("-m", "x=plain,saved-bug")
    place = bench.sweep / "1"
    done = bench.run("x=saved-bug", f"ckpt_path={place}", f"hydra.run.dir={place}")
    assert done.code == 0 and bench.states() == ["finished", "finished"]


def test_folders_of_jobs_may_be_named(bench):
    bench.run("-m", "x=plain,bug", "hydra.sweep.subdir=${hydra.job.override_dirname}")
    assert [job.folder for job in bench.read().jobs] == ["x=plain", "x=bug"]
    assert bench.run("resume_sweep=last").code == 0
    assert (bench.sweep / "x=bug" / "summary.json").is_file()


def runs_of(bench: Bench, migrated: Path) -> Callable[[], list]:
    """Asks the store for all runs that are not deleted, oldest first."""
    shutil.copy(migrated, bench.folder / "mlflow.db")

    def ask() -> list:
        client = open_client(f"sqlite:///{bench.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("app")
        return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])

    return ask


def test_a_killed_sweep_goes_on_in_its_mlflow_run_and_begins_jobs_anew_in_a_new_one(bench, migrated):
    ask = runs_of(bench, migrated)
    assert bench.run("-m", "x=plain,signal", "logger.uri=sqlite:///mlflow.db").code == -9
    parent, first, lost = ask()
    assert [run.info.status for run in (parent, first, lost)] == ["RUNNING", "FINISHED", "RUNNING"]
    assert parent.data.tags["vidlab.kind"] == "sweep" and lost.data.tags["vidlab.job"] == "1"
    done = bench.run("resume_sweep=last")
    assert done.code == 0, done.err
    assert "2 earlier runs had been stopped without notice" in done.err + done.out
    again, kept, anew = ask()
    assert (again.info.run_id, kept.info.run_id) == (parent.info.run_id, first.info.run_id)
    assert again.info.status == "FINISHED" and "vidlab.resume" not in again.data.tags
    assert anew.data.tags["mlflow.parentRunId"] == parent.info.run_id != lost.info.run_id
    assert again.data.tags["vidlab.jobs"] == "2 finished" and again.data.tags["vidlab.job.1"] == "finished: x=signal"
    assert {job.run_id for job in bench.read().jobs} == {kept.info.run_id, anew.info.run_id}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "package"), [("joblib", "joblib"), ("submitit_local", "submitit")])
def test_jobs_in_processes_of_a_launcher_are_recorded(bench, launcher, package):
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        source = {"PYTHONPATH": str(Path(vidlab.__file__).parents[1])}
        command = [sys.executable, str(APP), *arguments]
        return subprocess.run(command, cwd=bench.folder, env=os.environ | source, capture_output=True, text=True)

    done = run("-m", "x=plain,bug,other", f"hydra/launcher={launcher}")
    assert done.returncode == 2 and bench.states() == ["finished", "failed", "finished"], done.stderr
    done = run("resume_sweep=last")
    assert done.returncode == 0 and bench.states() == ["finished"] * 3, done.stderr
    assert sorted(bench.trained()) == ["bug 0 False", "other 0 False", "plain 0 False"]


def test_a_search_goes_on_after_a_kill(bench):
    pytest.importorskip("optuna")
    words = ("hydra/sweeper=optuna", "hydra.sweeper.trials=3", "y=interval(0,1)", "x=signal")
    assert bench.run("-m", *words).code == -9 and bench.states() == ["interrupted"]
    done = bench.run("resume_sweep=last", "hydra.sweeper.trials=1")
    assert done.code == 0 and bench.states() == ["finished"], done.err
    assert "The best of 1: job 0, val/loss 6.0" in done.out
