import csv
import shutil
from pathlib import Path

import pytest

from vidlab.metrics.run_scores import read_scores, video_name

from .command import Done, Lab, new_lab
from .tracked import Curve, tracked

SMALL = ("accelerator=cpu", "precision=32-true", "num_videos=6", "batch_size=4", "noise_levels=2")


def evaluate(lab: Lab, *arguments: str) -> Done:
    return lab.commands.run("evaluate.py", *SMALL, *arguments, cwd=lab.folder)


@pytest.fixture(scope="module")
def trained(commands, empty_store, tmp_path_factory) -> Lab:
    """A folder with two short runs that differ in their learning rate, and were evaluated during training."""
    lab = new_lab(commands, tmp_path_factory.mktemp("evaluated") / "work", empty_store)
    during = (
        "callbacks=[default,evaluation]",
        "callbacks.evaluation.every_n_steps=3",
        "callbacks.evaluation.num_videos=6",
    )
    for rate in ("0.02", "1e-6"):
        done = lab.train("trainer.max_steps=6", "lr_schedule=constant", f"optimizer.lr={rate}", *during)
        assert done.code == 0, done.err
    return lab


@pytest.fixture(scope="module")
def during(trained) -> Curve:
    """What the second run logged before it was evaluated."""
    return tracked(trained)[-1].curve


@pytest.fixture(scope="module")
def report(trained, during) -> Path:
    done = evaluate(trained, "run=last", "hydra.run.dir=evaluations/one")
    assert done.code == 0 and done.err == "", done.err
    assert "evaluations/one/report.md" in done.out
    (made,) = (trained.folder / "evaluations" / "videos").iterdir()
    shutil.copytree(made, trained.folder / "mine", ignore=shutil.ignore_patterns("*.json"))
    return trained.folder / "evaluations" / "one"


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return {row["metric"]: row for row in csv.DictReader(file)}


def test_a_run_is_scored_with_everything_a_value_depends_on(trained, report):
    found = rows(report)
    flicker = found["temporal_flickering"]
    assert float(flicker["low"]) <= float(flicker["value"]) <= float(flicker["high"])
    assert (flicker["N"], flicker["frames"], flicker["resolution"]) == ("6", "8", "32 x 32")
    assert {"loss_at_t/0.25", "loss_at_t/0.75", "x0_mse/log_snr_0"} <= set(found)
    text = (report / "report.md").read_text()
    assert "psnr: not measured, it needs one original for each clip" in text
    assert (report / "sheets-0" / "temporal_flickering.png").is_file()
    with (report / "clips.csv").open(newline="") as file:
        single = [float(row["score"]) for row in csv.DictReader(file) if row["metric"] == "temporal_flickering"]
    assert len(single) == 6 and sum(single) / 6 == pytest.approx(float(flicker["value"]), abs=1e-9)


def curves(curve: dict[tuple[str, int], float], metric: str) -> dict[str, dict[int, float]]:
    """The points of every series of a metric, by step."""
    found: dict[str, dict[int, float]] = {}
    for (name, step), value in curve.items():
        group, _, rest = name.partition("/")
        if group == "eval" and rest.partition("/")[2] == metric:
            found.setdefault(name, {})[step] = value
    return found


def test_scores_are_in_mlflow_at_the_checkpoints_step(trained, report):
    curve = tracked(trained)[-1].curve
    value = float(rows(report)["temporal_flickering"]["value"])
    (name,) = curves(curve, "temporal_flickering")
    assert name.startswith("eval/N6-Euler-2-ClassifierFreeGuidance-") and curve[name, 6] == pytest.approx(value)
    assert curve[name.replace("eval/", "eval-low/"), 6] <= value <= curve[name.replace("eval/", "eval-high/"), 6]
    assert tracked(trained)[-1].status == "FINISHED"


def test_the_callback_gives_the_same_values_in_the_same_series(during, report):
    found = rows(report)
    for name in ("temporal_flickering", "motion_magnitude", "warping_error"):
        (points,) = curves(during, name).values()
        assert points.keys() == {3, 6} and points[6] == pytest.approx(float(found[name]["value"]), rel=1e-6)


def test_the_callback_keeps_the_scores_and_videos_of_every_clip(trained, during):
    kept = [read_scores(run / "evaluation" / "scores.csv") for run in trained.runs]
    assert {row.step for row in kept[0]} == {3, 6}
    assert [(row.step, row.key, row.caption, row.metric) for row in kept[0]] == [
        (row.step, row.key, row.caption, row.metric) for row in kept[1]
    ]
    mine = [row.score for row in kept[1] if row.step == 6 and row.metric == "temporal_flickering"]
    (points,) = curves(during, "temporal_flickering").values()
    assert len(mine) == 6 and sum(mine) / 6 == pytest.approx(points[6])
    (series,) = {row.series for row in kept[1]}
    assert (f"eval/{series}/temporal_flickering", 6) in during
    names = {f"evaluation/videos/{video_name(row.key)}" for row in kept[1]}
    assert len(names) == 6
    for run, one in zip(trained.runs, tracked(trained), strict=True):
        assert {f"evaluation/videos/{path.name}" for path in (run / "evaluation" / "videos").iterdir()} == names
        (stored,) = trained.folder.rglob(f"{one.run_id}/artifacts")
        assert all((stored / name).is_file() for name in (*names, "evaluation/scores.csv"))


def test_generated_videos_are_made_once(trained, report):
    (videos,) = (trained.folder / "evaluations" / "videos").iterdir()  # of the one run evaluated so far
    made = {path.name: path.stat().st_mtime_ns for path in videos.glob("*.mp4")}
    assert len(made) == 6
    (videos / "00005.mp4").unlink()  # an evaluation that was stopped
    done = evaluate(trained, "run=last", "noise_levels=0", "hydra.run.dir=evaluations/again")
    assert done.code == 0, done.err
    kept = {path.name: path.stat().st_mtime_ns for path in videos.glob("*.mp4")}
    # the second batch was made again, the first was not
    assert {name for name in made if kept[name] == made[name]} == {f"0000{number}.mp4" for number in range(4)}
    again = rows(trained.folder / "evaluations" / "again")
    assert again["temporal_flickering"]["value"] == rows(report)["temporal_flickering"]["value"]


def test_two_runs_of_one_seed_are_no_ranking_and_are_compared_clip_by_clip(trained):
    first, second = trained.runs
    done = evaluate(trained, f"runs=[{first},{second}]", "hydra.run.dir=evaluations/two")
    assert done.code == 0 and done.err == "", done.err
    text = (trained.folder / "evaluations" / "two" / "report.md").read_text()
    told = "**x0_mse**: optimizer.lr=1e-6: one seed: a ranking from one seed says nothing about another."
    assert text.startswith("# Comparison") and told in text and told in done.out
    assert "optimizer.lr=0.02 seed=0" in text and len(done.out.splitlines()) < 30
    assert "## Checkpoint by checkpoint, over clips" in text and "paired bootstrap" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| x0_mse/log_snr_0 | ") and "| | | | |" in line]
    verdict = text[text.index(line) :].splitlines()[1].split("|")[-2].strip()
    assert verdict == "worse"  # a model that has not learned, compared with one that has


def test_a_folder_of_videos_is_scored(trained, report):
    done = evaluate(trained, "videos=mine", "hydra.run.dir=evaluations/folder")
    assert done.code == 0 and done.err == "", done.err
    found = rows(trained.folder / "evaluations" / "folder")
    wanted = float(rows(report)["temporal_flickering"]["value"])
    assert float(found["temporal_flickering"]["value"]) == pytest.approx(wanted, abs=1e-12)  # keys sort otherwise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing is named: give one of run="),
        (("run=last", "videos=x"), "run, videos are named"),
        (("videos=nowhere",), "videos=nowhere: there is no such folder"),
        (("videos=.hydra-empty",), "there is no such folder"),
        (("run=last", "num_videos=1"), "num_videos=1: it must be a whole number of 2 or more"),
        (("run=last", "conditioning_frames=2"), "trained without conditioning on frames"),
        (("run=last", "metrics=fvd"), "none of the metrics can be measured: fvd: it needs 16 frames"),
        (("run=nobody",), "run=nobody: no such run folder or checkpoint file"),
    ],
)
def test_what_cannot_be_evaluated(trained, arguments, message):
    done = evaluate(trained, *arguments)
    assert done.code == 2 and message in done.message and "Traceback" not in done.err, done


@pytest.mark.slow
def test_the_callback_gives_first_frames_as_evaluate_does(commands, empty_store, tmp_path):
    lab = new_lab(commands, tmp_path / "work", empty_store)
    during = ("callbacks=[default,evaluation]", "callbacks.evaluation.every_n_steps=null",
              "callbacks.evaluation.num_videos=6", "callbacks.evaluation.conditioning_frames=1")  # fmt: skip
    refused = lab.train("trainer.max_steps=2", *during)
    assert refused.code == 2
    assert "callbacks.evaluation.conditioning_frames=1: this model was trained without conditioning" in refused.err
    done = lab.train("trainer.max_steps=2", "conditioning=frame_replacement", "model=stiv", *during)
    assert done.code == 0, done.err
    before = tracked(lab)[-1].curve
    done = evaluate(lab, "run=last", "conditioning_frames=1", "hydra.run.dir=evaluations/one")
    assert done.code == 0, done.err
    found = rows(lab.folder / "evaluations" / "one")
    for name in ("temporal_flickering", "shapes_judge"):
        ((series, points),) = curves(before, name).items()
        assert points[2] == pytest.approx(float(found[name]["value"]), rel=1e-6)
        assert series in {key for key, _ in tracked(lab)[-1].curve}
