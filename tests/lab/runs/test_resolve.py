import os
import shutil
from pathlib import Path

import pytest
import torch

from vidlab.errors import UserError
from vidlab.lab.runs import resolve as runs


def make_run(folder: Path, age: int = 0, names: tuple[str, ...] = ("last.ckpt", "best.ckpt")) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        path = folder / "checkpoints" / name
        torch.save({"state_dict": {"weight": torch.arange(3.0)}, "global_step": 7}, path)
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return folder


def test_last_is_the_run_whose_checkpoint_is_newest(tmp_path):
    make_run(tmp_path / "a" / "2026-01-02", age=50)
    newest = make_run(tmp_path / "a" / "2026-01-01", age=10)  # resumed later than the other
    make_run(tmp_path / "b" / "2026-01-03", age=0)
    (tmp_path / "a" / "2026-01-04").mkdir()  # crashed before its first checkpoint
    run = runs.resolve_run("last", tmp_path, "a")
    assert run == runs.Run(newest, newest / "checkpoints" / "last.ckpt", None)
    assert runs.resolve_run("last", tmp_path, "a", which="best").checkpoint.name == "best.ckpt"


def test_last_goes_by_what_the_runs_recorded_and_not_by_file_times(tmp_path):
    folders = [make_run(tmp_path / "a" / f"2026-01-0{day}", age=day) for day in (1, 2, 3)]
    for folder in folders:
        runs.write_run_record(folder, None, "a")
    runs.note_written(folders[1])  # a checkpoint, or a resume
    os.utime(folders[0] / "checkpoints" / "last.ckpt", (2_000_000_000, 2_000_000_000))  # as cp -r leaves it
    assert runs.resolve_run("last", tmp_path, "a").folder == folders[1]
    shutil.copytree(folders[1], tmp_path / "a" / "2026-01-02-copy", copy_function=shutil.copyfile)
    assert runs.resolve_run("last", tmp_path, "a").folder == folders[1], "the original comes before its copy"
    shutil.rmtree(folders[1])
    assert runs.resolve_run("last", tmp_path, "a").folder.name == "2026-01-02-copy"
    shutil.move(tmp_path / "a", tmp_path / "moved" / "a")
    assert runs.resolve_run("last", tmp_path / "moved", "a").folder.name == "2026-01-02-copy"


def test_records_grow_when_a_clock_is_set_back(tmp_path, monkeypatch):
    early, late = (make_run(tmp_path / "a" / name) for name in ("z", "b"))
    runs.write_run_record(early, None, "a")
    newest = runs.newest_record(tmp_path / "a")
    monkeypatch.setattr(runs.time, "time_ns", lambda: 1000)
    runs.write_run_record(late, None, "a", newest)
    assert runs.read_run_record(late).written == newest + 1
    assert runs.resolve_run("last", tmp_path, "a").folder == late
    runs.note_written(late)
    assert runs.newest_record(tmp_path / "a") == newest + 2


def test_records_of_earlier_versions_and_damaged_ones_count_by_file_time(tmp_path):
    old = make_run(tmp_path / "a" / "old", age=10)
    (old / "run.json").write_text('{"mlflow_run_id": null, "experiment": "a"}')
    damaged = make_run(tmp_path / "a" / "damaged", age=20)
    (damaged / "run.json").write_text("{")
    assert runs.resolve_run("last", tmp_path, "a").folder == old
    assert runs.newest_record(tmp_path / "a") == 0
    runs.note_written(make_run(tmp_path / "b" / "plain"))


def test_last_finds_jobs_of_sweeps(tmp_path):
    make_run(tmp_path / "a" / "2026-01-01" / "0", age=20)
    job = make_run(tmp_path / "a" / "2026-01-01" / "1", age=10)
    assert runs.resolve_run("last", tmp_path, "a").folder == job
    with pytest.raises(UserError, match=r"holds 2 runs, choose one: .*/0, .*/1"):
        runs.resolve_run(str(tmp_path / "a" / "2026-01-01"), tmp_path, "a")


def test_finding_nothing_says_what_exists(tmp_path):
    with pytest.raises(UserError, match=r"ckpt_path=last: no run of experiment 'a'.*There is no run"):
        runs.resolve_run("last", tmp_path, "a")
    other = make_run(tmp_path / "b" / "2026-01-01")
    with pytest.raises(UserError, match="no run of experiment 'a'") as caught:
        runs.resolve_run("last", tmp_path, "a")
    assert str(other) in str(caught.value)
    with pytest.raises(UserError, match="run=typo: no such run folder"):
        runs.resolve_run("typo", tmp_path, "a", key="run")


def test_folder_and_file(tmp_path):
    folder = make_run(tmp_path / "a" / "2026-01-01")
    runs.write_run_record(folder, "0" * 32, "a")
    by_folder = runs.resolve_run(str(folder), tmp_path, "a")
    by_checkpoints = runs.resolve_run(str(folder / "checkpoints"), tmp_path, "a")
    by_file = runs.resolve_run(str(folder / "checkpoints" / "last.ckpt"), tmp_path, "a", which="best")
    assert by_folder == by_checkpoints == by_file
    assert by_folder.mlflow_run_id == "0" * 32


def test_missing_best_names_what_is_there(tmp_path):
    folder = make_run(tmp_path / "a" / "2026-01-01", names=("last.ckpt",))
    with pytest.raises(UserError, match=r"no checkpoints/best\.ckpt in this folder; it has last\.ckpt"):
        runs.resolve_run(str(folder), tmp_path, "a", which="best")
    config = folder / "config.yaml"
    config.write_text("a: 1")
    with pytest.raises(UserError, match=r"ends in \.ckpt"):
        runs.resolve_run(str(config), tmp_path, "a")


def test_mlflow_run_id_leads_to_the_folder(tmp_path, monkeypatch):
    from vidlab.lab.tracking.store import open_client, with_experiment_ready

    folder = make_run(tmp_path / "runs" / "a" / "2026-01-01")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    missing = "f" * 32
    with pytest.raises(UserError, match="there is no store"):
        runs.resolve_run(missing, tmp_path, "a", uri)
    assert not (tmp_path / "mlflow.db").exists()
    client = open_client(uri)
    experiment = with_experiment_ready(uri, "a")
    known = client.create_run(experiment, tags={"vidlab.run_folder": str(folder)}).info.run_id
    moved = client.create_run(experiment, tags={"vidlab.run_folder": "/gone/away"}).info.run_id
    foreign = client.create_run(experiment).info.run_id
    assert runs.resolve_run(known, tmp_path, "a", uri) == runs.Run(folder, folder / "checkpoints" / "last.ckpt", known)
    for run_id, message in [
        (moved, "missing: /gone/away"),
        (foreign, "not recorded"),
        (missing, "not found"),
    ]:
        with pytest.raises(UserError, match=message):
            runs.resolve_run(run_id, tmp_path, "a", uri)
    with pytest.raises(UserError, match="logger=none"):
        runs.resolve_run(known, tmp_path, "a", None)


def test_run_record_round_trip_and_damage(tmp_path):
    assert runs.read_run_record(tmp_path) is None
    runs.write_run_record(tmp_path, None, "first")
    path = runs.write_run_record(tmp_path, "abc", "second")
    record = runs.read_run_record(tmp_path)
    assert (record.mlflow_run_id, record.experiment) == ("abc", "second")
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"], "no temporary file is left"
    path.write_text('{"mlflow_run_id": ')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        runs.read_run_record(tmp_path)
