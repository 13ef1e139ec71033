import json

from vidlab.lab.sweeps.record import JobRecord, SweepRecord
from vidlab.lab.sweeps.table import as_data, rows_of, table


def sweep_of(folder, losses):
    """A sweep whose jobs have these last losses; without one a job has failed."""
    jobs = []
    for number, loss in enumerate(losses):
        state = "failed" if loss is None else "finished"
        jobs.append(JobRecord(number, (f"seed={number}", "trainer=cpu"), state, folder=str(number)))
        (folder / str(number)).mkdir(parents=True)
        if loss is not None:
            summary = {"last": {"val/loss": loss, "x": 1}, "shown": ["val/loss"]}
            (folder / str(number) / "summary.json").write_text(json.dumps(summary))
    return SweepRecord("one", "vidlab", None, "train", ("seed=0,1",), 1, tuple(jobs))


def test_a_table_of_jobs_has_what_differs_the_last_metrics_and_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = rows_of(tmp_path / "sweep", sweep_of(tmp_path / "sweep", [0.5, 0.25]))
    assert [line.split() for line in table(rows).text().splitlines()] == [
        ["job", "seed", "val/loss", "folder"],
        ["0", "0", "0.5000", "sweep/0"],
        ["1", "1", "0.2500", "sweep/1"],
    ]
    assert as_data(rows)[1] == {"job": 1, "settings": {"seed": "1"}, "state": "finished", "metrics": {"val/loss": 0.25}}


def test_where_a_job_failed_the_table_has_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = table(rows_of(tmp_path / "sweep", sweep_of(tmp_path / "sweep", [None, 0.25]))).markdown()
    assert text.splitlines() == [
        "| job | seed | state | val/loss | folder |",
        "| --- | --- | --- | --- | --- |",
        "| 0 | 0 | failed | - | sweep/0 |",
        "| 1 | 1 | finished | 0.2500 | sweep/1 |",
    ]
