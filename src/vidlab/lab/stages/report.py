"""What a graph shows: a picture while it runs, and a summary at its end."""

from collections.abc import Mapping
from typing import Any

from vidlab.files import write_json, write_text
from vidlab.lab.stages.picture import StageView, draw
from vidlab.lab.stages.running import StageRunner, flops_of, states_of, summary_of_stage
from vidlab.lab.sweeps.table import Table

PICTURE, SUMMARY = "stages.svg", "stages.json"
SCORES = 3


def rows_of(runner: StageRunner) -> list[dict[str, Any]]:
    """For each stage its state, its steps, FLOPs and scores, the digest of its weights and its folder."""
    rows, states = [], states_of(runner)
    for name, stage in runner.graph.stages.items():
        trained, place = runner.trained.get(name), runner.places.get(name)
        summary = summary_of_stage(place) if trained and place else {}
        last = summary.get("last", {})
        scores = {key: last[key] for key in summary.get("shown", ()) if isinstance(last.get(key), float)}
        rows.append(
            {
                "stage": name,
                "state": states[name],
                "computed": name in runner.computed,
                "parents": dict(stage.parents),
                "steps": summary.get("steps"),
                "flops": (flops_of(place) or None) if trained and place else None,
                "scores": scores,
                "digest": trained.digest if trained else None,
                "folder": str(place) if place else None,
            }
        )
    return rows


def write_report(runner: StageRunner) -> None:
    """Write the picture and the rows into the graph's folder."""
    rows = rows_of(runner)
    views = {row["stage"]: StageView(row["state"], _lines(row)) for row in rows}
    write_text(runner.folder / PICTURE, draw(runner.graph, views))
    write_json(runner.folder / SUMMARY, {"graph": runner.graph.name, "stages": rows})


def table_of(runner: StageRunner) -> Table:
    """The rows as a table; ``before`` is a stage that an earlier command has trained."""
    rows = rows_of(runner)
    names = list(dict.fromkeys(key for row in rows for key in row["scores"]))
    lines = []
    for row in rows:
        state = row["state"] if row["computed"] or row["state"] != "finished" else "before"
        scores = [f"{row['scores'][key]:.4f}" if key in row["scores"] else "-" for key in names]
        amount = [str(row["steps"] or "-"), f"{row['flops']:.2g}" if row["flops"] else "-"]
        lines.append((row["stage"], state, *amount, *scores, (row["digest"] or "-")[:12], row["folder"] or "-"))
    return Table(("stage", "state", "steps", "FLOPs", *names, "weights", "folder"), tuple(lines))


def _lines(row: Mapping[str, Any]) -> list[str]:
    lines = [f"{row['steps']} steps, {row['flops'] or 0:.2g} FLOPs"] if row["steps"] else []
    lines += [f"{key} {value:.4f}" for key, value in list(row["scores"].items())[:SCORES]]
    return lines
