import json
from pathlib import Path

from vidlab.lab.runs.sweep_table import print_table, rows_of, table


def job(folder: Path, overrides: list[str], loss: float | None) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    if loss is not None:
        (folder / "summary.json").write_text(json.dumps({"last": {"val/loss": loss, "x": 1}, "shown": ["val/loss"]}))


def test_a_table_of_jobs_has_what_differs_the_last_metrics_and_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, loss in ((2, 0.5), (10, 0.25), (1, None)):
        job(tmp_path / "sweep" / str(number), [f"seed={number}", "trainer=cpu"], loss)
    lines = [line.split() for line in table(rows_of(tmp_path / "sweep")).splitlines() if line]
    assert lines == [
        ["3", "jobs:"],
        ["job", "seed", "val/loss", "folder"],
        ["1", "1", "-", "sweep/1"],
        ["2", "2", "0.5000", "sweep/2"],
        ["10", "10", "0.2500", "sweep/10"],
    ]


def test_a_sweep_of_which_nothing_is_left_leaves_no_folder(tmp_path, capsys):
    for name, kept in (("empty", False), ("used", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "multirun.yaml").write_text("")
        if kept:
            (folder / "notes.txt").write_text("mine")
        print_table(folder)
        assert folder.exists() == kept
    assert capsys.readouterr().out == ""
