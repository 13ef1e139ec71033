"""A sweep on record: ``sweep.json`` in its folder, and a file for each job that has begun.

``jobs/<number>.json`` is written by the process that runs the job, and by no other at that time: jobs may run in many
processes and on many machines. ``sweep.json`` holds what was planned, and a copy of those files as they were when it
was last written. ``read_sweep`` puts both together, so that a kill at any moment leaves a sweep that can be read.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vidlab.errors import UserError
from vidlab.files import write_json
from vidlab.lab.tracking import heartbeat
from vidlab.lab.tracking.process_identity import ProcessIdentity

State = Literal["planned", "running", "finished", "failed", "interrupted"]
RECORD, JOBS = "sweep.json", "jobs"


@dataclass(frozen=True)
class JobRecord:
    """A job of a sweep.

    Args:
        number: from 0, in the order of the sweep.
        overrides: its command line, without the program and without passwords.
        state: ``planned``, ``running``, ``finished``, ``failed`` or ``interrupted``.
        folder: of its run, relative to the sweep's.
        run_id: its MLflow run.
        message: why it failed, in one line.
        process: that runs it or has run it.
    """

    number: int
    overrides: tuple[str, ...]
    state: State = "planned"
    folder: str = ""
    run_id: str | None = None
    message: str = ""
    process: ProcessIdentity | None = None

    def as_it_is(self, sweep: Path) -> "JobRecord":
        """This record, with the MLflow run that its folder names by now; a job that was killed is interrupted."""
        gone = self.state == "running" and not self._runs(sweep)
        run_id = run_id_of(sweep / self.folder) or self.run_id
        return replace(self, state="interrupted" if gone else self.state, run_id=run_id)

    def _runs(self, sweep: Path) -> bool:
        alive = self.process.alive() if self.process else False
        if alive is not None:
            return alive
        try:
            beat = (sweep / self.folder / heartbeat.FILE).stat().st_mtime
        except OSError:  # it has begun, and has not come to training yet
            beat = (sweep / JOBS / f"{self.number}.json").stat().st_mtime
        return time.time() - beat < heartbeat.SILENT_SECONDS


@dataclass(frozen=True)
class SweepRecord:
    """A sweep.

    Args:
        id: the name of its folder.
        experiment: of its runs.
        parent_run_id: the MLflow run above those of its jobs; None with ``logger=none``.
        program: the primary configuration of its jobs, such as ``train``; of a graph of stages, what runs it.
        arguments: what was typed, without passwords and without ``-m``.
        begun: nanoseconds since 1970.
        jobs: by number.
    """

    id: str
    experiment: str
    parent_run_id: str | None
    program: str
    arguments: tuple[str, ...]
    begun: int
    jobs: tuple[JobRecord, ...] = ()

    @property
    def is_graph(self) -> bool:
        """Whether its jobs are stages that start from each other's weights, run by a program of their own."""
        return self.program.startswith("-m ")

    @property
    def kind(self) -> str:
        """What it is called."""
        return "stages" if self.is_graph else "sweep"

    def having(self, job: JobRecord) -> "SweepRecord":
        """With a job in place of that of its number, or added."""
        jobs = {one.number: one for one in self.jobs} | {job.number: job}
        return replace(self, jobs=tuple(jobs[number] for number in sorted(jobs)))

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state that any is in."""
        found = {state: sum(job.state == state for job in self.jobs) for state in get_args(State)}
        return {state: count for state, count in found.items() if count}


def run_id_of(folder: Path) -> str | None:
    """The MLflow run that a run folder names; None where it names none, or cannot be read."""
    try:
        found = json.loads((folder / "run.json").read_text("utf-8"))["mlflow_run_id"]
        return found if isinstance(found, str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not begun, or said when it is resumed
        return None


def counted(sweep: SweepRecord) -> str:
    """How the jobs stand, such as ``2 finished, 1 failed``."""
    return ", ".join(f"{count} {state}" for state, count in sweep.counts().items()) or "no jobs"


def write_sweep(folder: Path, sweep: SweepRecord) -> None:
    """Write ``sweep.json`` in one step."""
    write_json(folder / RECORD, asdict(sweep))


def write_job(folder: Path, job: JobRecord) -> None:
    """Write the file of a job in one step; ``folder`` is the sweep's."""
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    write_json(folder / JOBS / f"{job.number}.json", asdict(job))


def read_sweep(folder: Path) -> SweepRecord:
    """The sweep of a folder, as it is now.

    Raises:
        UserError: it has no ``sweep.json``, or a damaged one.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        sweep = SweepRecord(
            **{name: str(record[name]) for name in ("id", "experiment", "program")},
            parent_run_id=None if record["parent_run_id"] is None else str(record["parent_run_id"]),
            arguments=tuple(map(str, record["arguments"])),
            begun=int(record["begun"]),
            jobs=tuple(_job(job) for job in record["jobs"]),
        )
    except FileNotFoundError:
        raise UserError(f"{folder}: no sweep was begun in this folder: it has no {RECORD}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); start the sweep anew.") from error
    for job in _written(folder):
        sweep = sweep.having(job)
    return replace(sweep, jobs=tuple(job.as_it_is(folder) for job in sweep.jobs))


def _written(folder: Path) -> Iterator[JobRecord]:
    for path in (folder / JOBS).glob("*.json"):
        try:
            yield _job(json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}); delete it: the job is then run again."
            ) from error


def _job(record: Any) -> JobRecord:
    state = record["state"]
    if state not in get_args(State):
        raise ValueError(f"no state: {state!r}")
    number, run_id = int(record["number"]), record["run_id"]
    return JobRecord(
        number=number,
        overrides=tuple(map(str, record["overrides"])),
        state=state,
        folder=str(number if record["folder"] is None else record["folder"]),  # earlier records named none at first
        run_id=None if run_id is None else str(run_id),
        message=str(record["message"]),
        process=ProcessIdentity.read(record["process"]),
    )
