import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml

from lab.compare.conftest import HOSTILE, JUDGE, KEYS
from vidlab.errors import UserError
from vidlab.lab.compare.build import build_comparison, log_to_parent
from vidlab.lab.compare.comparison import compare
from vidlab.lab.compare.data_frames import results
from vidlab.lab.compare.measures import main_measures, measure_of
from vidlab.lab.compare.media import Gallery
from vidlab.lab.compare.page.html import write_page
from vidlab.lab.compare.page.plots import all_plots, pareto_front, scaling
from vidlab.lab.compare.reading.runs import ComparedRun, Curve, Work
from vidlab.lab.compare.reading.selection import Selection, select_runs
from vidlab.lab.compare.robust import robust_rows
from vidlab.lab.compare.scaling import fit_power_law, size_fits
from vidlab.lab.compare.words import headline, ranking, sentences, warnings
from vidlab.lab.tracking.store import open_client


@pytest.fixture(scope="module")
def selection(sweep) -> Selection:
    return select_runs([str(sweep.folder)])


@pytest.fixture(scope="module")
def made(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "notes.txt").write_text("of a person, who wrote the comparison to a folder in use")
    return build_comparison(sweep.folder, folder)


def test_rows_are_configurations_with_means_intervals_and_tests(selection):
    found = compare(selection)
    assert [row.name for row in found.rows] == ["model=2p1d", "model=full3d"]
    mean = found.rows[0].means["val/x0_mse"]
    # 0.30, 0.32, 0.31: s = 0.01, t(0.975, 2) = 4.302653
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (mean.n, mean.value) == (3, pytest.approx(0.31)) and mean.interval.low == pytest.approx(0.31 - half)
    assert [one.label for one in found.main] == ["shapes_judge", "val/x0_mse"]
    assert {one.outcome for one in found.verdicts.values()} == {"better"}
    assert found.rows[0].costs == {"flops": 2e9, "tokens": 200.0, "seconds": 2.0}
    assert found.rows[0].clip_means[JUDGE] == (pytest.approx(0.49), pytest.approx(0.69))
    assert found.rows[0].over_clips[JUDGE].low == pytest.approx(0.49)
    assert headline(found) == "In shapes_judge, model=full3d is better than model=2p1d."


def test_failed_runs_and_other_noise_are_said_by_name(selection):
    told = "\n".join(warnings(compare(selection)))
    assert f"job 6, model=stiv seed=0: failed ({HOSTILE})" in told
    assert "Runs of one seed saw the same clips in the same order." in told
    assert "Seed 0: not all runs saw the same noise. Alike were: model=2p1d; model=full3d." in told


def test_a_ranking_from_one_seed_says_that_it_is_one(selection):
    single = replace(selection, runs=tuple(run for run in selection.runs if "seed=0" in run.overrides))
    found = compare(single)
    assert "a ranking from one seed" in headline(found)
    assert all(one.test is None for one in found.verdicts.values())
    assert any("One seed only" in line for line in warnings(found))
    assert sentences(found) == []  # the headline and this line say it


def test_what_an_image_model_has_cost_is_said_beside_the_budget(selection):
    runs = tuple(
        replace(run, work=replace(run.work, image_model_flops=9.44e12)) if "model=full3d" in run.overrides else run
        for run in selection.runs
    )
    told = [line for line in warnings(compare(replace(selection, runs=runs))) if "image model" in line]
    assert told == [
        "model=full3d stands on an image model whose training took 9.44 T FLOPs, once for all its runs; "
        "the column FLOPs does not count them."
    ]


def test_runs_that_have_all_failed(selection):
    with pytest.raises(UserError, match=r"none of its 1 runs has finished: job 6 failed"):
        compare(replace(selection, runs=selection.runs[6:]))


def test_metrics_that_are_asked_for(selection):
    assert [one.label for one in compare(selection, ["val/loss"]).main] == ["val/loss"]
    with pytest.raises(UserError, match=r"--metric val/los: no run was measured by it\. Did you mean 'val/loss'"):
        compare(selection, ["val/los"])
    assert [one.label for one in main_measures([measure_of("val/loss"), measure_of("val/other")])] == ["val/loss"]


def test_of_two_series_of_a_metric_that_of_most_configurations_decides(selection):
    """Runs 0, 1 and 2 are of one configuration, and were evaluated again with other settings."""
    again = "eval/N64-Euler-32-abcd/shapes_judge"
    runs = [replace(run, curves={again: run.curves[JUDGE], **run.curves}) for run in selection.runs[:3]]
    found = compare(replace(selection, runs=(*runs, *selection.runs[3:])))
    assert [one.key for one in found.main] == [JUDGE, "val/x0_mse"]
    (other,) = [one for one in found.others if one.key == again]
    assert other.label == "shapes_judge (N64-Euler-32-abcd)" and other.higher_is_better
    assert results(found).index.is_unique


@pytest.mark.parametrize("config", ["laptop", "full", "reconstruction"])
def test_which_way_is_better_is_what_the_metrics_say(config, pytestconfig):
    """By their source: importing all metrics takes longer than everything else here."""
    parts = yaml.safe_load((pytestconfig.rootpath / "conf" / "metrics" / f"{config}.yaml").read_text())
    checked = 0
    for name, part in parts.items():
        module = part["_target_"].rpartition(".")[0] if isinstance(part, dict) and "_target_" in part else ""
        source = pytestconfig.rootpath / "src" / f"{module.replace('.', '/')}.py"
        body = source.read_text().partition(f"class {part['_target_'].rpartition('.')[2]}(")[2] if module else ""
        told = re.search(r"^    higher_is_better = (True|False|None)$", body, re.MULTILINE)
        if told:
            checked += 1
            assert str(measure_of(f"eval/S/{name}").higher_is_better) == told[1], name
    assert checked >= 2
    assert measure_of("val/x0_mse").higher_is_better is False


@pytest.mark.parametrize(
    ("name", "higher"), [("psnr", True), ("ssim", True), ("lpips", False), ("l1", False), ("latent_std", None)]
)
def test_which_way_is_better_of_what_a_training_measures(name, higher):
    assert measure_of(f"val/{name}").higher_is_better is higher


def test_the_table_has_every_number(made):
    with (made / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [one for one in rows if one["metric"] == "val/x0_mse" and one["configuration"] == "model=full3d"]
    assert float(row["mean"]) == pytest.approx(0.635 / 3) and row["seeds"] == "0 1 2" and row["against"] == "model=2p1d"
    assert float(row["difference"]) == pytest.approx(-0.295 / 3) and float(row["flops"]) == 4e9
    assert row["verdict"] == "model=full3d better than model=2p1d" and row["decides"] == "yes"


def test_interquartile_means_and_how_often_a_run_beats_one_of_the_first(selection, made):
    found = robust_rows(compare(selection))
    assert [(one.measure.label, one.row.name) for one in found] == [
        ("shapes_judge", "model=2p1d"), ("shapes_judge", "model=full3d")]  # fmt: skip
    # scores 0.9 - loss -+ 0.1 of losses 0.30, 0.32, 0.31: 0.48, 0.49, 0.50, 0.68, 0.69, 0.70; one is cut at each end
    assert found[0].middle.value == pytest.approx((0.49 + 0.50 + 0.68 + 0.69) / 4)
    # of four that are drawn, the upper of the first clip and the lower of the second: 0.48 to 0.50 and 0.68 to 0.70
    interval = found[0].middle.interval
    assert (interval.low, interval.high) == (pytest.approx(0.58), pytest.approx(0.60))
    assert found[0].improvement is None and found[1].improvement.value == 1, "each run beats each"
    with (made / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "shapes_judge"]
    assert [float(row["iqm"]) for row in rows] == [one.middle.value for one in found]
    assert [row["improvement"] for row in rows] == ["", "1.0"]
    assert "| shapes_judge | model=2p1d | 0.59 |" in (made / "comparison.md").read_text()
    assert "<td>shapes_judge</td><td>model=2p1d</td><td>0.59</td>" in (made / "comparison.html").read_text()


def test_the_page_is_one_file_that_plays_all_videos_and_runs_no_text(made):
    page = (made / "comparison.html").read_text()
    assert page.count('src="data:video/mp4;base64,') == 4  # two configurations, two prompts
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page), "nothing is fetched"
    assert HOSTILE not in page and "&lt;img src=x onerror=alert(1)&gt; clip 0" in page
    assert "default-src 'none'" in page and page.count("<script") == 1
    assert "0.31" in page and "4 G" in page and "model=full3d is better" in page
    assert {"steps", "flops", "tokens", "seconds", "parameters"} <= set(re.findall(r'data-axis="(\w*)"', page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "no two parts of one id"
    assert HOSTILE not in (made / "comparison.md").read_text()
    assert (made / "contact_sheet.png").stat().st_size > 1000


def test_the_parent_run_keeps_the_files(made, sweep):
    client = open_client(sweep.uri)
    names = {file.path.rpartition("/")[2] for file in client.list_artifacts(sweep.parent, "comparison")}
    assert names == {"comparison.html", "comparison.md", "comparison.csv", "contact_sheet.png", "plots"}
    assert not log_to_parent(made, Selection("none", ()))
    with pytest.warns(UserWarning, match="did not store the comparison"):
        assert not log_to_parent(made, Selection("gone", (), uri=sweep.uri, parent_run_id="0" * 32))


def test_a_power_law_is_found_again():
    exact = fit_power_law([(c, 3 * c**-0.25) for c in (1e9, 1e10, 1e11)])
    assert exact.exponent == pytest.approx(-0.25) and exact.factor == pytest.approx(3)
    # log-log points (0, 0), (1, 1), (2, 1): slope 1/2, intercept 1/6, residual sum 1/6, t(0.975, 1) = 12.7062
    law = fit_power_law([(1.0, 1.0), (math.e, math.e), (math.e**2, math.e)])
    assert law.exponent == pytest.approx(0.5)
    assert law.interval.high - 0.5 == pytest.approx(12.7062 * math.sqrt(1 / 6) / math.sqrt(2), rel=1e-5)
    _, high = law.band(np.array([math.e]))
    assert math.log(high[0] / law.at(np.array([math.e]))[0]) == pytest.approx(12.7062 * math.sqrt(1 / 6 / 3), rel=1e-5)
    assert fit_power_law([(1.0, 2.0), (4.0, 1.0)]).interval is None and fit_power_law([(2.0, 1.0), (2.0, 3.0)]) is None


def sized(scale: float, seed: int, flops: float, value: float, budget: str | None = None) -> ComparedRun:
    words = (f"model.scale={scale}", f"seed={seed}", *([] if budget is None else [f"budget.value={budget}"]))
    return ComparedRun(
        f"{scale} {seed} {budget}", "finished", overrides=words, work=Work(10, flops, 1, 1), parameters=1e6 * scale**3,
        curves={"val/x0_mse": Curve(np.array([10]), np.array([value]))},
    )  # fmt: skip


def test_sizes_are_fitted_against_what_differs_between_them():
    """Steps: FLOPs differ. One budget of FLOPs: only parameters do. Several budgets: the best size of each."""
    measure = measure_of("val/x0_mse")
    by_steps = [sized(s, seed, 1e9 * s**3, 2 * s**-0.5) for s in (0.5, 1, 2) for seed in (0, 1)]
    (fit,) = size_fits(compare(Selection("steps", tuple(by_steps))).rows, measure)
    assert (fit.name, fit.axis, len(fit.law.points)) == ("all", "flops", 6)
    assert fit.law.exponent == pytest.approx(-1 / 6)  # s^-1/2 over s^3
    at_once = [sized(s, seed, 1e12 * (1 + s / 100), 2 * s**0.6) for s in (0.5, 1, 2) for seed in (0, 1)]
    found = compare(Selection("equal", tuple(at_once)))
    (fit,) = size_fits(found.rows, measure)
    assert fit.axis == "parameters" and fit.law.exponent == pytest.approx(0.2)
    assert [(one.section, one.axis) for one in scaling(found.rows, measure)] == [("scaling", "parameters")]
    best = {1e12: 0.5, 4e12: 1, 16e12: 2}  # the size that is best for each budget
    several = [
        sized(s, seed, c, (c / 1e12) ** -0.25 + (0 if best[c] == s else 0.1), f"{c:.0e}")
        for c in best for s in (0.5, 1, 2) for seed in (0, 1)
    ]  # fmt: skip
    (fit,) = size_fits(compare(Selection("budgets", tuple(several))).rows, measure)
    assert fit.axis == "flops" and fit.law.exponent == pytest.approx(-0.25) and len(fit.law.points) == 6


def test_the_front_holds_what_no_cheaper_one_beats():
    points = [(3, 0.5), (1, 0.2), (2, 0.1), (4, 0.4), (5, 0.9)]
    assert pareto_front(points, higher_is_better=True) == [(1, 0.2), (3, 0.5), (5, 0.9)]
    assert pareto_front(points, higher_is_better=False) == [(1, 0.2), (2, 0.1)]
    for higher in (True, False):
        lost = [(0.5, math.nan), (0.6, math.inf), *points]
        assert pareto_front(lost, higher) == pareto_front(points, higher)


@pytest.mark.parametrize("key", ["val/x0_mse", JUDGE])
def test_a_run_that_diverged_comes_last_and_is_said(selection, key, tmp_path):
    lost = selection.runs[0]
    curves = {**lost.curves, key: Curve(np.array([10]), np.array([math.nan]))}
    diverged = replace(lost, curves=curves, clip_scores={JUDGE: dict.fromkeys(KEYS, math.nan)})
    found = compare(replace(selection, runs=(diverged, *selection.runs[1:])), [key])
    assert [row.name for row in ranking(found, found.main[0])] == ["model=full3d", "model=2p1d"]
    label = found.main[0].label
    assert any(line.startswith(f"{label} is not finite in a run of model=2p1d") for line in warnings(found))
    assert headline(found) == f"{label} is finite in 1 of 2 configurations."
    third = replace(selection.runs[5], overrides=("model=third", "seed=0"))
    wider = compare(replace(selection, runs=(diverged, *selection.runs[1:5], third)), [key])
    assert headline(wider).startswith(f"{label} has no finite mean in model=2p1d, with which the others are compared")
    page = write_page(tmp_path / "page.html", found, all_plots(found), Gallery(), None).read_text()
    assert not re.search(r'="nan"|\bnan,', page), "nothing is drawn there"
