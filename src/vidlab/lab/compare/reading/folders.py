"""What a run folder says of its run, and a sweep's folder of its jobs."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.errors import UserError
from vidlab.lab.compare.reading.runs import PREVIEWS, ComparedRun, Curve, State, Work
from vidlab.lab.runs.configurations import read_settings
from vidlab.lab.runs.resolve import read_run_record
from vidlab.lab.sweeps import record as sweeps
from vidlab.lab.sweeps.record import RECORD
from vidlab.metrics import run_scores

SUMMARY, EVALUATION = "summary.json", Path("evaluation")
SCORES, VIDEOS = EVALUATION / run_scores.SCORES, EVALUATION / run_scores.VIDEOS


@dataclass(frozen=True)
class Job:
    """A job of a sweep, from ``sweep.json``; of a sweep without one, a folder."""

    number: str
    folder: Path | None
    run_id: str | None
    overrides: tuple[str, ...]
    state: State | None
    message: str = ""


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder.

    Args:
        folder: of it.
        parent_run_id: the MLflow run above its jobs.
        jobs: by number.
    """

    folder: Path
    parent_run_id: str | None
    jobs: tuple[Job, ...]


def is_run(folder: Path) -> bool:
    """Whether a run has written to a folder."""
    return any((folder / name).exists() for name in ("run.json", SUMMARY, ".hydra"))


def is_sweep(folder: Path) -> bool:
    """Whether jobs have written below a folder."""
    return (folder / RECORD).is_file() or any(folder.glob("*/.hydra/overrides.yaml"))


def read_sweep(folder: Path) -> Sweep:
    """The jobs of a sweep's folder.

    Raises:
        UserError: its record is damaged.
    """
    if not (folder / RECORD).is_file():
        found = sorted((one.parents[1] for one in folder.glob("*/.hydra/overrides.yaml")), key=_by_number)
        return Sweep(folder, None, tuple(Job(one.name, one, None, (), None) for one in found))
    record = sweeps.read_sweep(folder)
    return Sweep(folder, record.parent_run_id, tuple(_job(folder, one) for one in record.jobs))


def _by_number(folder: Path) -> tuple[int, str]:
    return len(folder.name), folder.name


def _job(folder: Path, record: sweeps.JobRecord) -> Job:
    return Job(
        str(record.number), folder / record.folder, record.run_id, record.overrides, record.state, record.message
    )


def mlflow_run_of(folder: Path) -> str | None:
    """The MLflow run of a folder, by its ``run.json``; None without one."""
    record = read_run_record(folder)
    return record.mlflow_run_id if record else None


def store_of(folder: Path) -> str | None:
    """The address of the store in which a folder's run is, by its summary or its configuration."""
    summary = _json(folder / SUMMARY)
    if summary.get("tracking_uri"):
        return str(summary["tracking_uri"])
    found = re.search(r"^logger:\n(?:  .*\n)*?  uri: (\S+)$", _text(folder / "config.yaml"), re.MULTILINE)
    return found[1] if found else None


def read_folder(folder: Path) -> ComparedRun:
    """What a run folder alone says; without a summary it has not finished, and damaged settings are noted as none."""
    summary = _json(folder / SUMMARY)
    notes: tuple[str, ...] = ()
    try:
        settings = read_settings(folder)
    except UserError as error:
        settings, notes = None, (str(error),)
    known = summary.get("last") if isinstance(summary.get("last"), dict) else None
    scores, captions = read_scores(folder / SCORES)
    overrides, defaults = (settings.overrides, settings.defaults) if settings else ((), {})
    return ComparedRun(
        folder.name, "finished" if known else "failed",
        "" if known else "it has left no summary: it failed, was stopped, or still runs",
        overrides=overrides, defaults=defaults, folder=folder, run_id=mlflow_run_of(folder),
        curves=_ends(summary, known or {}), work=_work(summary), clip_scores=scores, captions=captions,
        videos=find_videos(folder, captions),
        data_order=_text_or_none(summary.get("data_order")), noise=_text_or_none(summary.get("noise")), notes=notes,
    )  # fmt: skip


def _ends(summary: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Curve]:
    """The first and the last values, which is all that a summary has of a curve."""
    first, steps = summary.get("first") or {}, int(summary.get("steps") or 0)
    found = {}
    for name, value in last.items():
        points = {0: first[name]} if name in first and steps else {}
        points[steps] = value
        found[name] = Curve(np.array(list(points)), np.array(list(points.values()), dtype=np.float64))
    return found


def _work(summary: Mapping[str, Any]) -> Work:
    """What was counted; of runs that counted nothing, steps times the mean of a step."""
    counted, beside = summary.get("cost"), summary.get("cost_beside")
    if isinstance(counted, dict):
        image_model = _number(beside.get("image_model_flops")) if isinstance(beside, dict) else None
        steps, flops, tokens, seconds = (_number(counted.get(name)) for name in ("steps", "flops", "tokens", "seconds"))
        return Work(steps, flops, tokens, seconds, image_model or 0.0)
    steps, rates = _number(summary.get("steps")), summary.get("throughput") or {}
    pace, flops = _number(rates.get("steps_per_second")), _number(rates.get("flops_per_step"))
    tokens = _number(rates.get("tokens_per_second"))
    return Work(
        steps,
        steps * flops if steps and flops else None,
        steps * tokens / pace if steps and tokens and pace else None,
        _number(summary.get("wall_seconds")),
    )


def read_scores(path: Path) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Scores of single clips at the last step, by metric and key, and captions by key; empty without the file.

    A metric is called as the evaluation logs it, ``eval/<series>/<metric>``.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}, {}
    rows = run_scores.read_scores(path)
    newest = {_logged(row): row.step for row in sorted(rows, key=lambda row: row.step)}
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.step == newest[_logged(row)]:
            scores.setdefault(_logged(row), {})[row.key] = row.score
    return scores, {row.key: row.caption for row in rows}


def _logged(row: run_scores.ClipScore) -> str:
    return f"eval/{row.series}/{row.metric}"


def find_videos(folder: Path, keys: Iterable[str] = ()) -> dict[str, Path]:
    """Videos of the last evaluation by the clip's key; without one, the grid of the newest previews.

    Args:
        folder: of the run, or its artifacts.
        keys: of the clips that were scored; a video of another clip goes by its file's name.
    """
    named = {run_scores.video_name(key): key for key in keys}
    made = sorted((folder / VIDEOS).rglob("*.mp4"))
    if made:
        return {named.get(path.name, path.stem): path for path in made}
    previews = sorted((folder / "previews").glob("*.mp4"))
    return {PREVIEWS: previews[-1]} if previews else {}


def with_job(run: ComparedRun, job: Job) -> ComparedRun:
    """A run with what its sweep says of it."""
    told = {"state": job.state, "message": job.message} if job.state else {}
    return replace(run, name=f"job {job.number}", overrides=job.overrides or run.overrides, **told)  # type: ignore[arg-type]


def sweeps_below(runs: Path, name: str) -> Iterator[Path]:
    """Folders of the sweeps of an experiment, oldest first: their names are times."""
    yield from (path for path in sorted((runs / name).glob("*")) if path.is_dir() and is_sweep(path))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
