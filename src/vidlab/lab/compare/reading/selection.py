"""Which runs are compared: a sweep by its id, folder or MLflow run, or single runs, found and read."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vidlab.errors import UserError
from vidlab.lab.compare.reading.folders import (
    Job,
    find_videos,
    is_run,
    is_sweep,
    mlflow_run_of,
    read_folder,
    read_sweep,
    store_of,
    sweeps_below,
    with_job,
)
from vidlab.lab.compare.reading.runs import ComparedRun, State, Work
from vidlab.lab.compare.reading.store import StoredRun, children, read_runs
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.sweeps import record as sweeps
from vidlab.lab.sweeps.parent import command_of
from vidlab.lab.sweeps.record import RECORD
from vidlab.lab.sweeps.resume import sweeps_called

DEFAULT_STORE = "sqlite:///mlflow.db"
RUN_ID = re.compile(r"[0-9a-f]{32}")
STATES: Mapping[str, State] = {
    "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running", "SCHEDULED": "planned",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Runs to compare.

    Args:
        title: what they are called together.
        runs: in order, jobs that left no run included.
        folder: of the sweep; None for single runs.
        uri: of the store of the parent run.
        parent_run_id: the MLflow run of the sweep.
        notes: what could not be read, for a person.
    """

    title: str
    runs: tuple[ComparedRun, ...]
    folder: Path | None = None
    uri: str | None = None
    parent_run_id: str | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Found:
    """What the words of a command line have named so far."""

    uri: str | None
    jobs: list[Job] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)


def select_runs(
    words: Sequence[str], uri: str | None = None, name: str = "vidlab", runs_root: Path = RUNS
) -> Selection:
    """Find the runs that words name, and read them.

    Args:
        words: each ``last`` (the newest sweep), a sweep's id or folder, a run's folder, or an MLflow run id of a run or
            of a sweep.
        uri: the MLflow store; by default the one that the run folders name, or ``mlflow.db`` of the current folder.
        name: the experiment in which ``last`` looks.
        runs_root: where run folders are kept.

    Raises:
        UserError: nothing is called so, or it cannot be read; says what exists.
    """
    found = _Found(uri)
    for word in words:
        _add(found, word.strip(), name, runs_root)
    runs, notes = _read(found)
    single = len(words) == 1
    folder = found.sweeps[0] if single and found.sweeps else None
    parent = found.parents[0] if single and found.parents else None
    title = folder.name if folder else words[0] if single else f"{len(runs)} runs"
    return Selection(title, runs, folder, _uri(found), parent, notes)


def _add(found: _Found, word: str, name: str, runs_root: Path) -> None:
    path = _sweep_folder(word, name, runs_root)
    if path is not None and path.is_dir():
        if is_sweep(path):
            _add_sweep(found, path)
        elif is_run(path):
            found.jobs.append(Job(path.name, path.resolve(), None, (), None))
        else:
            raise UserError(f"{path}: neither a run nor a sweep has written to this folder. {_exist(runs_root)}")
    elif RUN_ID.fullmatch(word):
        _add_from_store(found, word)
    else:
        raise UserError(
            f"{word}: no sweep, run folder or MLflow run (32 hexadecimal digits) is called so. {_exist(runs_root)}"
        )


def _sweep_folder(word: str, name: str, runs_root: Path) -> Path | None:
    """The folder that a word means: of a sweep on record, as for ``resume_sweep``, otherwise of jobs without one."""
    path = Path(word).expanduser()
    if word != "last" and path.is_dir():
        return path
    if RUN_ID.fullmatch(word) or not re.fullmatch(r"[\w.-]+", word):
        return None
    recorded = sweeps_called(word, name, runs_root)
    if len(recorded) > 1 and word != "last":
        raise UserError(f"{word}: several sweeps have this id, choose a folder: {', '.join(map(str, recorded))}.")
    if recorded:
        return recorded[0]
    if word != "last":
        return next(iter(sorted(runs_root.glob(f"*/{word}"))), None)
    unrecorded = list(sweeps_below(runs_root, name))
    if not unrecorded:
        raise UserError(f"last: there is no sweep in {runs_root / name} yet. {_exist(runs_root)}")
    return unrecorded[-1]


def _exist(runs_root: Path) -> str:
    experiments = sorted(path.name for path in runs_root.iterdir() if path.is_dir()) if runs_root.is_dir() else []
    sweeps = [sweep for name in experiments for sweep in sweeps_below(runs_root, name)]
    listed = ", ".join(map(str, sweeps[-5:]))
    return f"Newest sweeps: {listed}." if listed else "Begin one: python train.py -m model=2p1d,full3d seed=0,1,2"


def _add_sweep(found: _Found, folder: Path) -> None:
    sweep = read_sweep(folder.resolve())
    found.sweeps.append(sweep.folder)
    found.jobs += sweep.jobs
    if sweep.parent_run_id:
        found.parents.append(sweep.parent_run_id)


def _add_from_store(found: _Found, run_id: str) -> None:
    """A run of the store; the sweep's folder says more than the store where it is on this machine."""
    uri = found.uri or DEFAULT_STORE
    known = read_runs(uri, [run_id])
    if run_id not in known:
        raise UserError(f"{run_id}: no such run in {uri}. Name its store with --uri, or its folder.")
    stored, below = known[run_id], children(uri, "mlflow.parentRunId", run_id)
    folder = Path(stored.tags.get("vidlab.run_folder", ""))
    found.uri = uri
    if stored.tags.get("vidlab.kind") == "sweep" or below:
        if stored.tags.get("vidlab.run_folder") and folder.is_dir() and is_sweep(folder):
            _add_sweep(found, folder)
        else:
            found.jobs += [Job(str(place), None, child, (), None) for place, child in enumerate(below)]
        found.parents = list(dict.fromkeys([*found.parents, run_id]))
    else:
        found.jobs.append(Job("", None, run_id, (), None))


def _uri(found: _Found) -> str | None:
    if found.uri:
        return found.uri
    named = next((uri for job in found.jobs if job.folder and (uri := store_of(job.folder))), None)
    return named or (DEFAULT_STORE if Path("mlflow.db").is_file() else None)


def _read(found: _Found) -> tuple[tuple[ComparedRun, ...], tuple[str, ...]]:
    by_store: dict[str, list[str]] = {}
    ids: list[str | None] = []
    default = _uri(found)
    for job in found.jobs:
        has_folder = job.folder is not None and job.folder.is_dir()
        ids.append(job.run_id or (mlflow_run_of(job.folder) if has_folder and job.folder else None))
        store = found.uri or (store_of(job.folder) if has_folder and job.folder else None) or default
        if ids[-1] and store:
            by_store.setdefault(store, []).append(ids[-1])
    stored, notes = _stored(by_store)
    runs, seen = [], set()
    for job, run_id in zip(found.jobs, ids, strict=True):
        run = _one(job, stored.get(run_id or ""))
        mark = run.folder or run.run_id or object()
        if mark not in seen:
            seen.add(mark)
            runs.append(run)
    notes += [note for run in runs for note in run.notes]
    missing = sum(bool(run_id) and run_id not in stored for run_id in ids)
    if missing:
        notes.append(f"{missing} runs are not in the store; of them only first and last values are known.")
    return tuple(runs), tuple(notes)


def _stored(by_store: Mapping[str, Sequence[str]]) -> tuple[dict[str, StoredRun], list[str]]:
    found: dict[str, StoredRun] = {}
    notes: list[str] = []
    for uri, ids in by_store.items():
        try:
            found |= read_runs(uri, list(dict.fromkeys(ids)))
        except UserError as error:  # folders have the rest
            notes.append(str(error))
    return found, notes


def _one(job: Job, stored: StoredRun | None) -> ComparedRun:
    """A job, from its folder, the store, or what its sweep says of it alone."""
    place = job.folder
    if place is None and stored is not None and stored.tags.get("vidlab.run_folder"):
        place = Path(stored.tags["vidlab.run_folder"])
    run = read_folder(place) if place is not None and place.is_dir() else ComparedRun(job.number, "planned")
    run = replace(run, folder=run.folder or place)
    if stored is not None:
        run = _with_stored(run, stored)
    if job.state is not None:
        run = with_job(run, job)
    elif job.number.isdigit():
        run = replace(run, name=f"job {job.number}")
    if run.notes and not run.overrides:  # it would count as a run of other settings
        return replace(run, state="failed", message="its settings are not known")
    return run


def _with_stored(run: ComparedRun, stored: StoredRun) -> ComparedRun:
    """A run with what the store has of it: its curves, its status, its tags."""
    tags, curves = stored.tags, {**run.curves, **stored.curves}
    command = shlex.split(tags.get("vidlab.command", ""))[2:] if tags.get("vidlab.command") else []
    state = STATES.get(stored.status, "running")
    return replace(
        run,
        name=run.name if run.folder else stored.name,
        run_id=stored.run_id,
        state=state,
        message="" if state == "finished" else run.message or f"MLflow says {stored.status}",
        overrides=run.overrides or tuple(command),
        curves=curves,
        work=_work(run, stored),
        parameters=_number(tags.get("vidlab.parameters")),
        videos=run.videos or find_videos(Path(stored.artifacts), run.captions),
        data_order=tags.get("vidlab.data_order", run.data_order),
        noise=tags.get("vidlab.noise", run.noise),
    )


def _work(run: ComparedRun, stored: StoredRun) -> Work:
    counted = {kind: curve.last for kind in ("flops", "tokens", "seconds")
               if (curve := stored.curves.get(f"cost/{kind}")) is not None}  # fmt: skip
    longest = max((int(curve.steps[-1]) for curve in stored.curves.values()), default=None)
    steps = run.work.steps or longest
    per_step = _number(stored.tags.get("vidlab.flops_per_step"))
    if "flops" not in counted and run.work.flops is None and per_step and steps:
        counted["flops"] = per_step * steps
    image_model = _number(stored.tags.get("vidlab.image_model_flops")) or run.work.image_model_flops
    return replace(run.work, steps=steps, image_model_flops=image_model, **counted)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def sweep_command(selection: Selection) -> str:
    """What was typed for a sweep, where that is known."""
    if selection.folder is None or not (selection.folder / RECORD).is_file():
        return ""
    return command_of(sweeps.read_sweep(selection.folder))
