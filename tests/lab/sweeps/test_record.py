import os
import time
from dataclasses import replace

import pytest

from vidlab.errors import UserError
from vidlab.lab.sweeps.membership import membership, recorded_job
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, read_sweep, write_job, write_sweep
from vidlab.lab.tracking.heartbeat import SILENT_SECONDS
from vidlab.lab.tracking.process_identity import this_process

SWEEP = SweepRecord("one", "vidlab", None, "train", ("x=1,2",), 1, tuple(
    JobRecord(number, (f"x={number}",), folder=str(number)) for number in range(3)))  # fmt: skip


def states(folder) -> list[str]:
    return [job.state for job in read_sweep(folder).jobs]


def test_what_the_jobs_say_counts_more_than_what_was_planned(tmp_path):
    write_sweep(tmp_path, SWEEP)
    assert read_sweep(tmp_path) == SWEEP
    write_job(tmp_path, replace(SWEEP.jobs[1], state="failed", message="no"))
    found = read_sweep(tmp_path)
    assert states(tmp_path) == ["planned", "failed", "planned"] and found.jobs[1].message == "no"
    assert found.counts() == {"planned": 2, "failed": 1}


def test_a_job_whose_process_is_gone_was_interrupted(tmp_path):
    write_sweep(tmp_path, SWEEP)
    own = this_process()
    running = replace(SWEEP.jobs[0], state="running", process=own)
    write_job(tmp_path, running)
    assert states(tmp_path)[0] == "running"
    write_job(tmp_path, replace(running, process=replace(own, started=own.started - 100)))
    assert states(tmp_path)[0] == "interrupted"
    write_job(tmp_path, replace(running, process=replace(own, place="another machine")))
    assert states(tmp_path)[0] == "running"
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "heartbeat").touch()
    long_ago = time.time() - 2 * SILENT_SECONDS
    os.utime(tmp_path / "jobs" / "0.json", (long_ago, long_ago))
    assert states(tmp_path)[0] == "running"
    os.utime(tmp_path / "0" / "heartbeat", (long_ago, long_ago))
    assert states(tmp_path)[0] == "interrupted"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "a"}', "[" * 200_000, '{"jobs": [{"state": "lost"}]}'])
def test_damaged_records_are_named(tmp_path, content):
    write_sweep(tmp_path, SWEEP)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "1.json").write_text(content)
    with pytest.raises(UserError, match=r"jobs/1.json is damaged (.*); delete it"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "finished", ""),
        (UserError("x must\nnot be 1"), "failed", "x must not be 1"),
        (SystemExit(143), "interrupted", ""),
        (SystemExit(3), "failed", "exit code 3"),
        (KeyboardInterrupt(), "interrupted", ""),
    ],
)
def test_a_job_writes_down_how_it_ends(tmp_path, error, state, message):
    write_sweep(tmp_path, SWEEP)
    kind = BaseException if error is None else type(error)
    try:
        with recorded_job(tmp_path / "1"):
            assert states(tmp_path)[1] == "running"
            if error is not None:
                raise error
    except kind:
        assert error is not None
    job = read_sweep(tmp_path).jobs[1]
    assert (job.state, job.message) == (state, message)


def test_a_run_of_its_own_is_no_job_and_other_ranks_write_nothing(tmp_path, monkeypatch):
    with recorded_job(tmp_path / "alone"):
        pass
    assert membership(tmp_path / "alone") is None and not list(tmp_path.iterdir())
    write_sweep(tmp_path, SWEEP)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with recorded_job(tmp_path / "1"):
        assert states(tmp_path) == ["planned"] * 3


def test_nothing_is_written_over_the_record_of_a_process_that_still_runs_the_job(tmp_path):
    write_sweep(tmp_path, SWEEP)
    grandparent = replace(this_process(), pid=1, started=this_process().started)
    alive = replace(SWEEP.jobs[1], state="running", process=replace(grandparent, place="another machine"))
    write_job(tmp_path, alive)
    with recorded_job(tmp_path / "1"):
        pass
    assert read_sweep(tmp_path).jobs[1] == alive


def test_a_job_of_an_earlier_record_that_names_no_folder_has_that_of_its_number(tmp_path):
    write_sweep(tmp_path, SWEEP)
    text = (tmp_path / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(text.replace('"folder": "1"', '"folder": null'))
    assert read_sweep(tmp_path) == SWEEP


def test_the_tags_of_a_child(tmp_path):
    write_sweep(tmp_path, replace(SWEEP, parent_run_id="ab"))
    member = membership(tmp_path / "2")
    assert member is not None
    assert member.tags() == {"vidlab.sweep": "one", "vidlab.job": "2", "mlflow.parentRunId": "ab"}
