import csv
import shlex
from pathlib import Path

from vidlab.lab.evaluation.clips import ScoredClip
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.evaluation.report_files import write_report
from vidlab.lab.evaluation.scoring import Scores
from vidlab.metrics.base import key_number
from vidlab.metrics.results import MetricResult


def evaluated(name: str, source: str, clip: ScoredClip) -> Evaluated:
    result = MetricResult(
        "score", -0.5, None, 1, None, keys=(key_number(clip.key),), scores=(-0.5,), notes=("a <b>note</b>",),
        frames=8, stride=1, resolution=(32, 32), resize="none",
    )  # fmt: skip
    return Evaluated(name, source, (clip,), Scores({"score": result}), "0" * 32)


def test_names_and_captions_of_strangers_do_nothing_in_a_report(tmp_path, capsys):
    clip = ScoredClip("=1+1", "=cmd|' /C calc'!A0 \x1b[2J", Path("@x/a.mp4"))
    write_report(tmp_path, [evaluated("<img src=x>|\x1b[31m", "run (1)/[x](y)/last.ckpt", clip)])
    (row,) = csv.DictReader((tmp_path / "clips.csv").open())
    assert (row["key"], row["caption"], row["file"]) == ("'=1+1", "'=cmd|' /C calc'!A0 \\x1b[2J", "'@x/a.mp4")
    assert row["score"] == "-0.5" and row["subject"] == "<img src=x>|\\x1b[31m"
    (row,) = csv.DictReader((tmp_path / "scores.csv").open())
    assert row["value"] == "-0.5" and "\x1b" not in row["subject"]
    text, printed = (tmp_path / "report.md").read_text(), capsys.readouterr().out
    for shown in (text, printed):
        assert "## &lt;img src=x&gt;\\|\\\\x1b\\[31m" in shown and "\x1b" not in shown
        assert "\\[x\\](y)" in shown and "a &lt;b&gt;note&lt;/b&gt;" in shown
    line = next(line for line in printed.splitlines() if line.startswith("  compare"))
    assert shlex.split(line, comments=True)[3] == 'runs=["run (1)/[x](y)/last.ckpt",last]'
