"""The tables of experiments/: every row composes, its numbers have a source, and verdicts follow from runs."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from vidlab.errors import DataError, UserError
from vidlab.lab.claims.verdicts import lines, main, read_published, scores_of, tables_of, verdicts
from vidlab.lab.compose import accepted, build_module
from vidlab.lab.runs import run_folder  # noqa: F401  registers its resolver

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
TABLES = sorted(path.parent.relative_to(EXPERIMENTS).as_posix() for path in EXPERIMENTS.glob("*/*/sweep.yaml"))
ROWS = [(table, path.stem) for table in TABLES for path in sorted((EXPERIMENTS / table / "rows").glob("*.yaml"))]


def composed(table: str, *words: str, hydra: bool = False):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [f"experiment={table}", *words], return_hydra_config=hydra)


def test_the_published_tables_are_there():
    assert set(TABLES) >= {
        "open_sora_plan/attention", "open_sora_plan/objective", "open_sora_plan/adaptive_clipping", "harivo/components",
        "m4v/mixers", "m4v/dual_blocks", "m4v/image_video_ratio", "stiv/norms", "stiv/frame_replacement",
        "stiv/joint_guidance", "stiv/initialization", "stiv/maskdit",
    }  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_one_sweep(table):
    folder = EXPERIMENTS / table
    cfg, published = composed(table, hydra=True), read_published(folder)
    params = cfg.hydra.sweeper.params
    rows = params[f"row/{table}"].split(",")
    assert params["seed"] == "0,1,2" and cfg.name == table.replace("/", "_")
    assert rows == [row.row for row in published] and set(rows) == {row for at, row in ROWS if at == table}
    assert cfg.hydra.runtime.choices[f"row/{table}"] == next(row.row for row in published if row.baseline)
    assert all(row.source and row.metric for row in published)
    assert {row.ours for row in published} <= {"val/x0_mse", *cfg.callbacks.evaluation.metrics}, "a name in scores.csv"
    readme = (folder / "README.md").read_text()
    assert f"python train.py -m experiment={table}\n" in readme and "**Tuning.**" in readme
    told = [name for name in re.findall(r"^\| (\w+) \|", readme, flags=re.M) if name in rows]
    assert told and told == rows * (len(told) // len(rows))  # a table for each size
    other = composed(table, f"row/{table}={next(row for row in reversed(rows) if row != rows[0])}")
    accepted(other)
    assert {key: value for key, value in cfg.items() if key != "hydra"} != dict(other.items())


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_rows_name_choices_that_exist(table, row):
    content = yaml.safe_load((EXPERIMENTS / table / "rows" / f"{row}.yaml").read_text())
    for entry in content.get("defaults", []):
        for key, choices in entry.items() if isinstance(entry, dict) else ():
            group = key.removeprefix("override /").partition("@")[0]
            for choice in choices if isinstance(choices, list) else [choices]:
                assert (ROOT / "conf" / group / f"{choice}.yaml").is_file(), f"{group}={choice}"


@pytest.mark.slow
@pytest.mark.parametrize(("table", "row"), ROWS)
def test_every_row_can_be_built(table, row):
    module = build_module(composed(table, f"row/{table}={row}"))
    if table != "harivo/components":  # whose image model is trained first
        with torch.device("meta"):
            module.configure_model()


# --- verdicts -------------------------------------------------------------------------------------------------------

HEAD = "row,baseline,metric,better,published,expected,ours,ours_better,source\n"
TABLE = HEAD + "".join(
    f"{row},{base},FVD,lower,{number},{expected},{{ours}},higher,Table 1\n"
    for row, base, number, expected in (("plain", "yes", "10", ""), ("good", "", "8", ""), ("bad", "", "12", ""),
                                        ("same", "", "9", ""), ("told", "", "", "better"), ("absent", "", "7", ""))
)  # fmt: skip
SCORES = {
    "plain": (1.0, 1.1, 0.9),
    "good": (2.0, 2.2, 1.9),
    "bad": (3.0, 3.1, 2.9),
    "same": (1.2, 0.9, 1.0),
    "told": (2.0,),
}


@pytest.fixture
def sweep(tmp_path):
    """A table and the folder of a sweep, in which one run failed."""
    table, number = tmp_path / "table", 0
    for row, values in SCORES.items():
        for seed, value in enumerate(values):
            job = tmp_path / "sweep" / str(number)
            (job / ".hydra").mkdir(parents=True)
            (job / ".hydra" / "overrides.yaml").write_text(f"- row/m4v/mixers={row}\n- seed={seed}\n- name=x\n")
            (job / "summary.json").write_text(json.dumps({"last": {"val/score": value}}))
            (job / "evaluation").mkdir()
            clips = "".join(
                f"{step},s,k{k},a,judge,{value + k - 1 + (step - 9) * 5}\n" for step in (3, 9) for k in range(3)
            )
            (job / "evaluation" / "scores.csv").write_text(f"step,series,key,caption,metric,score\n{clips}")
            number += 1
    failed = tmp_path / "sweep" / str(number) / ".hydra"
    failed.mkdir(parents=True)
    (failed / "overrides.yaml").write_text("- row/m4v/mixers=absent\n- seed=0\n")
    table.mkdir()
    (table / "README.md").write_text("# A table\n<!-- results -->\nearlier\n<!-- end of results -->\nafter\n")
    (table / "published.csv").write_text(TABLE.format(ours="val/score"))
    return table


@pytest.mark.parametrize("metric", ["val/score", "judge"])
def test_verdicts_by_hand(sweep, metric):
    scores = scores_of([sweep.parent / "sweep"], metric)[()]
    assert scores["good"] == pytest.approx({0: 2.0, 1: 2.2, 2: 1.9})
    found = verdicts(read_published(sweep), scores)
    assert [one.word for one in found] == [
        "baseline", "same sign", "opposite", "not resolvable at this size", "one seed", "not measured",
    ]  # fmt: skip
    assert found[1].test.difference == pytest.approx((1.0 + 1.1 + 1.0) / 3)


def test_results_are_written_between_the_marks(sweep, capsys):
    assert main([str(sweep), str(sweep.parent / "sweep"), "--write"]) == 0
    readme = (sweep / "README.md").read_text()
    assert readme.startswith("# A table\n<!-- results -->\n| row |") and readme.endswith(
        "<!-- end of results -->\nafter\n"
    )
    assert "earlier" not in readme and "| absent | 7 |  |  | not measured |" in readme
    assert main([str(sweep), "nowhere"]) == 2 and "no such folder" in capsys.readouterr().err


def test_another_size_is_a_table_of_its_own(sweep, capsys):
    larger = sweep.parent / "larger"
    for seed in range(2):
        for number, (row, value) in enumerate([("plain", 5.0), ("good", 4.0)]):
            job = larger / f"{number}{seed}" / ".hydra"
            job.mkdir(parents=True)
            job.joinpath("overrides.yaml").write_text(f"- row/m4v/mixers={row}\n- seed={seed}\n- model.scale=2\n")
            job.parent.joinpath("summary.json").write_text(json.dumps({"last": {"val/score": value + seed / 10}}))
    assert main([str(sweep), str(sweep.parent / "sweep"), str(larger)]) == 0
    small, large = capsys.readouterr().out.split("With `model.scale=2`:")
    assert "| plain | 10 | 1, s = 0.1, 3 seeds |" in small and "| good | 8 | 2.033," in small
    assert "| plain | 10 | 5.05, s = 0.071, 2 seeds |" in large and "| good | 8 | 4.05," in large


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.image_model=/root/lab/runs/image", "model.image_model=image"),
        ("data.path='/my videos/a'", "data.path='a'"),
        ("logger.uri=sqlite:////root/lab/mlflow.db", "logger.uri=mlflow.db"),
        ("model.image_model=~/image", "model.image_model=image"),
        ("data.path=/data", "data.path=data"),
        ("pictures=[/a/b.png,/c/d.png]", "pictures=[b.png,d.png]"),
        ("model=paper/m4v", "model=paper/m4v"),
        ("model.backbone.patch=[1,2,2]", "model.backbone.patch=[1,2,2]"),
        ("budget.value=8e12", "budget.value=8e12"),
    ],
)
def test_no_folder_of_this_machine_comes_into_a_readme(sweep, setting, told):
    scores = {("seed=0", setting): {"plain": {0: 1.0}}}
    assert f"With `seed=0 {told}`:\n" in list(tables_of(read_published(sweep), scores))


def test_without_runs_nothing_is_measured(sweep):
    found = verdicts(read_published(sweep), {})
    assert {one.word for one in found} == {"not measured"} and "| told | better |  |  | not measured |" in list(
        lines(found)
    )


@pytest.mark.parametrize("change", [("lower", "down"), ("plain,yes", "plain,"), (",source", ",origin")])
def test_a_damaged_table_is_refused(sweep, change):
    path = sweep / "published.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=r"published\.csv"):
        read_published(sweep)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_published(sweep)
