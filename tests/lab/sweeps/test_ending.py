import pytest

from vidlab.lab.sweeps import ending
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, write_sweep

SWEEP = SweepRecord("one", "vidlab", "ab", "train", ("x=1,2",), 1, tuple(
    JobRecord(number, (f"x={number}",), "finished", str(number)) for number in range(2)))  # fmt: skip


class Parent:
    """Stands for the sweep's run: it notes what is done to it."""

    uri, page = "http://store", "http://store/page"

    def __init__(self) -> None:
        self.done = []

    def show(self, sweep):
        self.done.append("shown")

    def keep(self, sweep, markdown, rows):
        self.done.append("kept")

    def close(self, state):
        self.done.append(state)


def test_a_stop_during_the_comparison_leaves_a_run_that_has_ended(tmp_path, monkeypatch):
    write_sweep(tmp_path, SWEEP)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vidlab.lab.compare.build.build_comparison", stopped)
    parent = Parent()
    with pytest.raises(KeyboardInterrupt):
        ending.report(tmp_path, SWEEP, parent, interrupted=False)
    assert parent.done == ["shown", "kept", "finished"]


def test_the_comparison_stands_before_what_to_type_next(tmp_path, monkeypatch, capsys):
    write_sweep(tmp_path, SWEEP)
    monkeypatch.setattr("vidlab.lab.compare.build.build_comparison", lambda folder: folder / "comparison")
    ending.report(tmp_path, SWEEP, None, interrupted=False)
    told = capsys.readouterr().out
    assert told.index("  comparison   ") < told.index("Next:\n  python -m vidlab.lab.compare ")
