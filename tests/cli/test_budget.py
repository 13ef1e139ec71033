"""Runs of two models at one budget, killed and resumed, as a person would start them."""

import json
import sqlite3
from contextlib import closing

import pytest

from .command import new_lab
from .tracked import only, tracked, weights

SHORT = ("callbacks.previews=null", "lr_schedule.warmup_steps=2", "data.val_clips=4")
FLOPS = 2e9


def tags_of(lab) -> list[dict[str, str]]:
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database:
        runs = [run for (run,) in database.execute("select run_uuid from runs order by start_time")]
        tags = [dict(database.execute("select key, value from tags where run_uuid = ?", (run,))) for run in runs]
        return [one for one in tags if one.get("vidlab.kind") != "sweep"]


def test_two_models_at_equal_compute(lab):
    """They end within one step of the budget, saw the same clips and noise, and log their cost with their losses."""
    done = lab.train("-m", "model=full3d,2p1d", "budget=flops", f"budget.value={FLOPS:g}", *SHORT)
    assert done.code == 0, done.err
    summaries = [json.loads(path.read_text()) for path in sorted(lab.folder.glob("runs/*/*/*/summary.json"))]
    costs = [summary["cost"] for summary in summaries]
    for cost, summary in zip(costs, summaries, strict=True):
        assert FLOPS <= cost["flops"] < FLOPS + 1.2 * cost["flops"] / cost["steps"]
        assert cost["steps"] == summary["steps"] and cost["samples"] == 4 * cost["steps"] and cost["seconds"] > 0
        assert summary["cost_beside"]["text_encoder_flops"] > 0 == summary["cost_beside"]["autoencoder_flops"]
    assert costs[0]["steps"] != costs[1]["steps"]
    for run in tracked(lab):
        steps = {step for name, step in run.curve if name == "train/loss"}
        for name in ("cost/flops", "cost/tokens", "cost/samples", "cost/seconds"):
            assert {step for key, step in run.curve if key == name} == steps
    first, second = tags_of(lab)
    shared = ("vidlab.data_order", "vidlab.noise")
    assert all(first[name] == second[name] for name in shared) and len({first[name] for name in shared}) == 2


@pytest.mark.slow
def test_a_resumed_run_spends_what_is_left(commands, empty_store, tmp_path):
    whole, parts = (new_lab(commands, tmp_path / name, empty_store) for name in ("whole", "parts"))
    assert whole.train("budget=flops", f"budget.value={FLOPS:g}", *SHORT).code == 0
    assert parts.train("budget=flops", f"budget.value={FLOPS / 2:g}", "lr_schedule=constant", *SHORT).code == 0
    expected = weights(whole.runs[0] / "checkpoints" / "last.ckpt")
    assert expected["global_step"] > weights(parts.runs[0] / "checkpoints" / "last.ckpt")["global_step"]
    done = parts.train("budget=flops", f"budget.value={FLOPS:g}", *SHORT, "ckpt_path=last")
    assert done.code == 0, done.err
    assert weights(parts.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == expected["global_step"]
    (one, other) = (only(lab).curve for lab in (whole, parts))
    logged = {step for name, step in one if name == "train/loss"}
    for name in ("cost/flops", "cost/tokens", "cost/samples"):
        assert {step for key, step in one if key == name} == logged
        assert all(one[name, step] == other[name, step] for step in logged)
    again = parts.train("budget=flops", f"budget.value={FLOPS:g}", *SHORT, "ckpt_path=last")
    assert again.code == 0 and f"budget.value={FLOPS:g} asks for no more: nothing was trained" in again.out
    assert f"budget.value={2 * FLOPS:g}" in again.out
