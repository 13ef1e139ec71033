import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lab.compare.conftest import HOSTILE, JUDGE, KEYS, make_folder
from vidlab.errors import UserError
from vidlab.lab.compare.reading.folders import read_folder, read_scores
from vidlab.lab.compare.reading.runs import ComparedRun, Curve, Work
from vidlab.lab.compare.reading.selection import _with_stored, select_runs
from vidlab.lab.compare.reading.store import MOST_POINTS, StoredRun, children, read_runs, thinned
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, read_sweep, write_sweep
from vidlab.lab.sweeps.resume import find_sweep
from vidlab.metrics.run_scores import video_name


def test_all_runs_of_a_sweep_with_their_curves(sweep):
    found = select_runs([str(sweep.folder)])
    assert [run.name for run in found.runs] == [f"job {n}" for n in range(7)]
    assert found.parent_run_id == sweep.parent and found.folder == sweep.folder.resolve()
    first, failed = found.runs[0], found.runs[6]
    assert first.curves["val/x0_mse"].steps.tolist() == [5, 10]
    assert first.curves["val/x0_mse"].values.tolist() == [0.9, 0.3]
    assert first.work == Work(10, 2e9, 200, 2.0), "as the store has it; the summary says 3e9"
    assert (failed.state, failed.message, failed.curves) == ("failed", HOSTILE, {})


@pytest.mark.parametrize("word", ["last", "2026-11-27_00-00-00-000000"])
def test_a_sweep_by_name(sweep, word):
    found = select_runs([word], runs_root=sweep.folder.parents[1])
    assert found.folder == sweep.folder.resolve() and len(found.runs) == 7


def test_the_last_sweep_is_that_which_was_begun_last_wherever_it_is(tmp_path):
    for place, begun in (("vidlab/b", 1), ("elsewhere/a", 2)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        jobs = (JobRecord(0, ("seed=0",), "failed", "0"),)
        write_sweep(folder, SweepRecord(folder.name, "vidlab", None, "train", (), begun, jobs))
    assert select_runs(["last"], runs_root=tmp_path).folder == find_sweep(str(tmp_path / "elsewhere/a")).resolve()
    (tmp_path / "elsewhere/a").rename(tmp_path / "elsewhere/b")
    record = read_sweep(tmp_path / "elsewhere/b")
    write_sweep(tmp_path / "elsewhere/b", replace(record, id="b"))
    with pytest.raises(UserError, match="b: several sweeps have this id, choose a folder"):
        select_runs(["b"], runs_root=tmp_path)
    make_folder(tmp_path / "vidlab" / "c" / "0", None, None, ["seed=0"], 0.4)
    assert len(select_runs(["c"], runs_root=tmp_path).runs) == 1, "without a record"


def test_a_sweep_by_its_mlflow_run(sweep):
    found = select_runs([sweep.parent], uri=sweep.uri)
    assert len(found.runs) == 7 and found.parent_run_id == sweep.parent
    assert children(sweep.uri, "mlflow.parentRunId", sweep.parent) == list(sweep.children)


def test_single_runs_by_id_and_by_folder_and_none_twice(sweep):
    found = select_runs([sweep.children[0], sweep.children[3], str(sweep.folder / "0")], uri=sweep.uri)
    assert [run.run_id for run in found.runs] == [sweep.children[0], sweep.children[3]]
    assert found.runs[1].overrides == ("model=full3d", "seed=0") and found.parent_run_id is None


def test_a_run_whose_folder_is_lost_is_read_from_the_store(sweep, tmp_path, monkeypatch):
    shutil.copy(sweep.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update tags set value = '/lost' || value where key = 'vidlab.run_folder'")
    run = select_runs([sweep.parent], uri=uri).runs[4]
    assert run.overrides == ("model=full3d", "seed=1") and run.state == "finished"
    assert run.curves[JUDGE].last == pytest.approx(0.9 - 0.22) and run.work.flops == 4e9


def test_a_folder_without_a_store(tmp_path):
    make_folder(tmp_path / "run", None, None, ["model=full3d", "seed=2"], 0.4)
    run = read_folder(tmp_path / "run")
    assert run.state == "finished" and run.overrides == ("model=full3d", "seed=2")
    assert run.curves["val/x0_mse"].steps.tolist() == [0, 10] and run.work == Work(10, 3e9, 200, 2.0)
    assert list(run.videos) == list(KEYS)
    (tmp_path / "run" / "summary.json").unlink()
    assert read_folder(tmp_path / "run").state == "failed"


def test_videos_go_by_their_clips_whatever_their_files_are_called(tmp_path):
    make_folder(tmp_path / "run", None, None, ["seed=2"], 0.4)
    key = "clips/a cat, one"  # no name of a file
    evaluation = tmp_path / "run" / "evaluation"
    (evaluation / "videos" / f"{KEYS[1]}.mp4").rename(evaluation / "videos" / video_name(key))
    table = evaluation / "scores.csv"
    table.write_text(table.read_text().replace(KEYS[1], f'"{key}"'))
    run = read_folder(tmp_path / "run")
    assert set(run.videos) == {KEYS[0], key} == set(run.captions)


def test_a_run_whose_settings_are_damaged_is_said_and_ends_no_comparison(tmp_path):
    for number in range(2):
        make_folder(tmp_path / str(number), None, None, [f"seed={number}"], 0.4)
    (tmp_path / "1" / ".hydra" / "config.yaml").write_text("{")
    found = select_runs([str(tmp_path)])
    assert [(run.name, run.state) for run in found.runs] == [("job 0", "finished"), ("job 1", "failed")]
    assert any("/1/.hydra is damaged" in note for note in found.notes)
    jobs = tuple(JobRecord(number, (f"seed={number}",), "finished", str(number)) for number in range(2))
    write_sweep(tmp_path, SweepRecord("one", "vidlab", None, "train", (), 1, jobs))
    found = select_runs([str(tmp_path)])
    assert [run.state for run in found.runs] == ["finished"] * 2 and len(found.notes) == 1, "the sweep has them"


def test_scores_of_clips_are_those_of_the_last_step(sweep):
    scores, captions = read_scores(sweep.folder / "0" / "evaluation" / "scores.csv")
    assert scores == {JUDGE: {"val_000": pytest.approx(0.5), "val_001": pytest.approx(0.7)}}
    assert captions["val_001"] == f"{HOSTILE} clip 1"


@pytest.mark.parametrize(
    ("word", "told"),
    [("last", "no sweep in"), ("unheard", "no sweep, run folder or MLflow run"), ("f" * 32, "no such")],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, word, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        select_runs([word])


def test_a_file_that_is_no_store(tmp_path):
    (tmp_path / "a.db").write_text("nothing")
    with pytest.raises(UserError, match="not a database of MLflow"):
        read_runs(f"sqlite:///{tmp_path}/a.db", ["0" * 32])


def test_a_damaged_record_of_a_sweep(tmp_path):
    (tmp_path / "sweep.json").write_text('{"jobs": [{"number": 0}]}')
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        select_runs([str(tmp_path)])


def test_long_curves_keep_their_ends():
    curve = thinned({step: step / 2 for step in range(5000)})
    assert len(curve.steps) <= MOST_POINTS and curve.steps[0] == 0 and curve.steps[-1] == 4999
    assert np.array_equal(curve.values, curve.steps / 2)


def test_the_cost_of_an_image_model_is_read_from_the_store_or_the_folder(tmp_path):
    make_folder(tmp_path / "0", None, None, ["seed=0"], 0.4)
    assert read_folder(tmp_path / "0").work.image_model_flops == 0
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    summary["cost_beside"] = {"image_model_flops": 9e12, "text_encoder_flops": 1}
    (tmp_path / "0" / "summary.json").write_text(json.dumps(summary))
    run = read_folder(tmp_path / "0")
    assert run.work.image_model_flops == 9e12
    stored = StoredRun("id", "name", "FINISHED", "", {"vidlab.image_model_flops": "7e12"})
    assert _with_stored(run, stored).work.image_model_flops == 7e12


def test_costs_between_logged_steps_are_interpolated_and_without_any_proportional():
    logged = ComparedRun("a", "finished", curves={"cost/flops": Curve(np.array([10, 20]), np.array([100.0, 300.0]))})
    assert logged.cost_at("flops", np.array([5, 10, 15])).tolist() == [50, 100, 200]
    counted = ComparedRun("a", "finished", work=Work(steps=10, tokens=50))
    assert counted.cost_at("tokens", np.array([2])).tolist() == [10] and counted.cost_at("flops", np.array([2])) is None


def test_costs_of_every_step_are_read_at_some_and_at_the_last(sweep, tmp_path):
    import sqlite3

    shutil.copy(sweep.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    run = sweep.children[0]
    rows = [("cost/flops", 2.0 * step, step, run, step, False) for step in range(11, 1001)]
    insert = "insert or replace into {} (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)"
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.executemany(insert.format("metrics"), rows)
        database.execute(insert.format("latest_metrics"), ("cost/flops", 2001.0, 1001, run, 1001, False))
    curve = read_runs(f"sqlite:///{tmp_path}/mlflow.db", [run])[run].curves["cost/flops"]
    assert 150 < len(curve.steps) < 250 and curve.last == 2001.0
    assert read_runs(f"sqlite:///{tmp_path}/mlflow.db", [run])[run].curves["val/x0_mse"].steps.tolist() == [5, 10]
