"""``vidlab step_times`` measures what ``data.bucketing.step_times`` reads, and refuses what has no buckets."""

import pytest

from vidlab.data.samplers.step_times import read_step_times
from vidlab.errors import UserError
from vidlab.lab.cli.composed import compose
from vidlab.lab.reports.data_plan import text_of
from vidlab.lab.reports.step_times import main, measured

TINY = (
    "trainer=cpu", "precision=32-true", "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.depth=1",
    "data.batch_size=2", "data.source.train_clips=16", "data.source.val_clips=8", "data.height=16", "data.width=16",
)  # fmt: skip
BUCKETS = ("data.bucketing.max_tokens=256", "data.bucketing.stride=4", "data.bucketing.temporal_stride=1")


def test_a_measured_table_is_what_training_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = measured([*TINY, *BUCKETS, "steps=1", "file=times.json"])
    assert "data.bucketing.step_times=times.json" in told and "8x16x16" in told
    times = read_step_times(tmp_path / "times.json")
    assert set(times.buckets) == {"8x16x16"} and times.buckets["8x16x16"].per_clip > 0
    cfg = compose(*TINY, *BUCKETS, "data.bucketing.step_times=times.json")
    assert "seconds per full batch, by data.bucketing.step_times" in text_of(cfg)


@pytest.mark.parametrize(
    ("words", "message"),
    [(TINY, "set data.bucketing.max_tokens"), ((*TINY, *BUCKETS, "steps=0"), "steps=0: it must be a whole number")],
)
def test_what_cannot_be_measured_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        measured(words)


def test_a_mistake_is_told_in_one_line(capsys):
    assert main([*TINY, "data.bucketing.max_token=3"]) == 2
    assert "max_token" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "step_times.json" in capsys.readouterr().out
