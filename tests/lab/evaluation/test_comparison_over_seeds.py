"""Recorded results of runs, grouped by their settings and compared over seeds."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import pytest

from vidlab.lab.evaluation import report_files
from vidlab.lab.evaluation.clips import ScoredClip
from vidlab.lab.evaluation.comparison.over_seeds import compare_over_seeds, group_runs, named_by_settings
from vidlab.lab.evaluation.comparison.seed_tables import front
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.evaluation.report_files import write_seed_report
from vidlab.lab.evaluation.scoring import Scores
from vidlab.lab.runs.configurations import RunSettings
from vidlab.metrics.base import key_number
from vidlab.metrics.results import MetricResult
from vidlab.metrics.series import Series
from vidlab.metrics.statistics.verdicts import ONE_SEED
from vidlab.sampling.gaussian import GaussianSampler
from vidlab.sampling.guidance import NoGuidance
from vidlab.sampling.solvers import Euler

CLIPS = [ScoredClip(f"clip-{n}", f"a shape {n}", Path(f"{n}.mp4")) for n in range(24)]
KEYS = tuple(sorted(key_number(clip.key) for clip in CLIPS))


def result(name: str, value: float, higher: bool | None, noise: str) -> MetricResult:
    """Scores of clips that differ much from clip to clip, little and always the same way from run to run."""
    draw = random.Random(noise)
    scores = [value + 0.05 * (place % 5 - 2) + draw.gauss(0, 0.001) for place in range(20)]
    scores += [value + (value - sum(scores) / 20) * 5] * 4  # the mean is the value
    return MetricResult(name, value, higher, 24, None, 8, 1, (32, 32), "none", keys=KEYS, scores=tuple(scores))


def run(judge: float, *overrides: str, error: float = 0.02, data: str = "d1", **defaults: str) -> Evaluated:
    known = {"model": "full3d", "seed": "0"} | defaults
    noise = f"{judge} {overrides}"
    results = {
        "motion": result("motion", judge + 1, None, noise),
        "x0_mse": result("x0_mse", error, False, noise),
        "shapes_judge": result("shapes_judge", judge, True, noise),
    }
    series = Series(24, GaussianSampler(Euler(), 2), NoGuidance(), {"data": data})
    name = f"vidlab/{len(overrides)}{overrides[-1]}" if overrides else "vidlab/first"
    return Evaluated(name, f"runs/{name}", CLIPS, Scores(results), None, 6, series, RunSettings(overrides, known))


def compared(*runs: Evaluated):
    return compare_over_seeds(named_by_settings(group_runs(runs)))


def verdicts(*runs: Evaluated) -> dict[str, str]:
    return {row.metric: row.verdict.text for row in compared(*runs).rows if row.verdict}


TWO_BACKBONES = (  # 0.1458 +- 0.0007 against 0.1453 +- 0.0026
    run(0.1463, "model=full3d", "seed=0", error=0.0210),
    run(0.1453, "model=full3d", "seed=1", error=0.0214),
    run(0.1434, "model=2p1d", "seed=0", error=0.0213),
    run(0.1472, "model=2p1d", "seed=1", error=0.0209),
)


def test_two_backbones_over_two_seeds_show_no_difference():
    found = compared(*TWO_BACKBONES)
    assert [group.name for group in found.groups] == ["model=full3d", "model=2p1d"]
    assert [one.name for one in found.groups[1].runs] == ["model=2p1d seed=0", "model=2p1d seed=1"]
    assert found.main == ("shapes_judge", "x0_mse") and {row.metric for row in found.others} == {"motion"}
    first, second = found.rows[:2]
    assert first.verdict is None and first.mean.value == pytest.approx(0.1458)
    assert second.mean.value == pytest.approx(0.1453) and second.mean.n == 2
    # differences -0.0029 and 0.0019: std 0.0024 sqrt(2), error 0.0024; one degree of freedom finds 16.33 errors
    assert second.verdict.unseen == pytest.approx(0.0024 * 16.334, rel=1e-3)
    assert second.verdict.adjusted > 0.5
    told = "no difference shown; an effect below 0.039 would not have been seen with 2 seeds"
    assert second.verdict.text == told and told in front(found)
    # the clips of one run are far apart, and that is another uncertainty than the seeds'
    assert first.over_clips.high - first.over_clips.low > 0.02
    assert first.mean.interval.high - first.mean.interval.low == pytest.approx(2 * 12.7062 * 0.0005, rel=1e-3)


def test_seeds_of_one_model_are_not_compared_with_each_other():
    found = compared(*TWO_BACKBONES[:2])
    assert [row.verdict for row in found.rows] == [None, None]
    assert "One configuration, seeds 0, 1: there is nothing to compare it with." in front(found)


def test_one_seed_each_is_no_ranking():
    found = verdicts(TWO_BACKBONES[0], TWO_BACKBONES[3])
    assert found == {"shapes_judge": ONE_SEED, "x0_mse": ONE_SEED}
    assert " (p " not in front(compared(TWO_BACKBONES[0], TWO_BACKBONES[3]))


def test_a_clear_difference_is_told_and_lower_errors_are_better():
    runs = [run(0.1 + 0.01 * s, f"seed={s}", error=0.02) for s in range(3)]
    runs += [run(0.3 + 0.011 * s, "model=2p1d", f"seed={s}", error=0.01 + s * 1e-4) for s in range(3)]
    found = compared(*runs)
    assert verdicts(*runs) == dict.fromkeys(found.main, "model=2p1d better than model=full3d")
    assert "**shapes_judge**: model=2p1d is better than model=full3d (p 1.7e-05)." in front(found)


def test_a_difference_that_one_clip_makes_is_said_to_be_the_clips():
    def turned(one: Evaluated) -> Evaluated:
        """One clip gains much, all others lose a little."""
        judge = one.scores.results["shapes_judge"]
        scores = tuple(score + (3.0 if place == 0 else -0.1) for place, score in enumerate(judge.scores))
        changed = replace(judge, scores=scores, value=sum(scores) / len(scores))
        return replace(one, scores=Scores({"shapes_judge": changed}))

    first = [run(0.1 + 0.01 * s, f"seed={s}") for s in range(3)]
    other = [turned(run(0.1 + 0.01 * s + 1e-5 * s, "model=2p1d", f"seed={s}")) for s in range(3)]
    found = compared(*first, *other)
    assert found.rows[1].verdict.outcome == "better" and found.rows[1].depends_on_clips
    # t is 0.0292 / (1e-5 / sqrt(3)) = 5052, p about 1 / t^2; over clips 0.0292 +- 2.07 x 0.129
    told = "is better than model=full3d (p 3.9e-08). This is of these clips: on others it could be -0.24 to +0.3."
    assert told in front(found)
    steady = compared(*first, *(run(0.3 + 0.0101 * s, "model=2p1d", f"seed={s}") for s in range(3)))
    assert steady.rows[1].verdict.outcome == "better" and not steady.rows[1].depends_on_clips


def test_a_missing_seed_leaves_the_common_ones():
    runs = [run(0.1 + 0.01 * s, f"seed={s}") for s in range(4)]
    runs += [run(0.11 + 0.013 * s, "model=2p1d", f"seed={s}") for s in (0, 1, 3)]
    found = compared(*runs)
    assert found.rows[1].verdict.test.seeds == ((0, 1, 3), (0, 1, 3))
    assert "model=2p1d has seeds 0, 1, 3: the common seeds 0, 1, 3 are compared." in front(found)
    others = [run(0.2 + 0.01 * s, "model=2p1d", f"seed={s}") for s in (7, 8)]
    assert compared(*runs[:4], *others).rows[1].verdict.test.kind == "unpaired"
    assert "all seeds are compared, unpaired" in front(compared(*runs[:4], *others))


def test_runs_of_other_data_are_not_compared():
    other = [run(0.9 + 0.001 * s, "data=folder", f"seed={s}", data="d2") for s in range(2)]
    found = verdicts(*TWO_BACKBONES[:2], *other)
    assert set(found.values()) == {"not comparable: other held-out clips; name one data set for all, data=<choice>"}
    longer = [replace(one, scores=Scores({"x0_mse": replace(one.scores.results["x0_mse"], frames=16)}))
              for one in TWO_BACKBONES[2:]]  # fmt: skip
    assert verdicts(*TWO_BACKBONES[:2], *longer) == {"x0_mse": "not comparable: frames 16 and 8"}


def test_runs_that_recorded_nothing_stand_alone():
    unknown = [replace(one, settings=None) for one in TWO_BACKBONES[:2]]
    groups = group_runs([unknown[0], TWO_BACKBONES[2], unknown[1], TWO_BACKBONES[3]])
    assert [group.name for group in groups] == ["vidlab/2seed=0", "all runs", "vidlab/2seed=1"]


def test_a_report_begins_with_its_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_files, "write_sheets", lambda folder, subject: {})  # there are no videos
    write_seed_report(tmp_path, compared(*TWO_BACKBONES))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 20  # at one glance
    assert printed.splitlines()[4].startswith("- **shapes_judge**: model=2p1d: no difference shown; an effect below")
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Comparison") and "## Every other metric" in text and "## model=full3d seed=1" in text
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["configuration"] for row in rows[:2]] == ["model=full3d", "model=2p1d"]
    assert rows[1]["seeds"] == "0 1" and float(rows[1]["mean"]) == pytest.approx(0.1453)
    assert len(rows) == 6
