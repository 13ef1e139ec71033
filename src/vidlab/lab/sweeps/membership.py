"""A job within its sweep: what it writes about itself there, and what its MLflow run says of the sweep."""

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vidlab.command_line import setting
from vidlab.errors import UserError
from vidlab.files import terminal
from vidlab.lab.cli.error_messages import explain
from vidlab.lab.sweeps.record import RECORD, JobRecord, State, SweepRecord, read_sweep, run_id_of, write_job
from vidlab.lab.tracking.process_identity import this_process
from vidlab.redaction import redact

LONGEST_MESSAGE = 500
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Membership:
    """A job and its sweep.

    Args:
        folder: of the sweep.
        sweep: as it was when this was asked.
        job: as it was then.
    """

    folder: Path
    sweep: SweepRecord
    job: JobRecord

    @property
    def run_folder(self) -> Path:
        """Where the job writes."""
        return self.folder / self.job.folder

    def tags(self) -> dict[str, str]:
        """Of the job's MLflow run."""
        tags = {"vidlab.sweep": self.sweep.id, "vidlab.job": str(self.job.number)}
        if self.sweep.parent_run_id:
            tags["mlflow.parentRunId"] = self.sweep.parent_run_id
        return tags

    def note(self, state: State, message: str = "") -> None:
        """Write the job's state down, with the MLflow run that its folder names."""
        run_id, own = run_id_of(self.run_folder), this_process()
        write_job(self.folder, replace(self.job, state=state, message=message, run_id=run_id, process=own))


def membership(run_folder: Path) -> Membership | None:
    """The sweep in whose folder a run writes; None for a run of its own.

    Raises:
        UserError: the sweep's record is damaged.
    """
    folder = next((one for one in run_folder.absolute().parents if (one / RECORD).is_file()), None)
    if folder is None:
        return None
    sweep, place = read_sweep(folder), str(run_folder.absolute().relative_to(folder))
    job = next((one for one in sweep.jobs if one.folder == place), None)
    return None if job is None else Membership(folder, sweep, job)


@contextmanager
def recorded_job(run_folder: Path) -> Iterator[None]:
    """Write down how a job of a sweep begins and ends; a run of its own passes.

    One of several processes of a job writes, that of rank 0. Nothing is written over the record of another process
    that still runs the job.
    """
    member = membership(run_folder) if _rank() == 0 else None
    if member is None or _is_run_elsewhere(member.job):
        yield
        return
    member.note("running")
    try:
        yield
    except Exception as error:
        member.note("failed", in_one_line(error))
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM, or a program that ends itself
        code = error.code if isinstance(error, SystemExit) else None
        stopped = code is None or code in STOPPED
        member.note("interrupted" if stopped else "failed", "" if stopped else f"exit code {code}")
        raise
    member.note("finished")


def in_one_line(error: Exception) -> str:
    """What went wrong, for a table."""
    told = explain(error) or f"{type(error).__name__}: {error}"
    return redact(terminal(" ".join(told.split())))[:LONGEST_MESSAGE]


def _is_run_elsewhere(job: JobRecord) -> bool:
    """Whether another process than this, and than the one that started this for it, runs the job."""
    if job.state != "running" or job.process is None:
        return False
    return job.process.pid not in (os.getpid(), os.getppid())


def _rank() -> int:
    given = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(rank) for rank in given if rank and rank.isdigit()), 0)


def last_value(run_folder: Path, metric: str = "val/loss") -> float | None:
    """The last value of a metric of a finished run; None where it has none, or none that is finite."""
    try:
        value = float(json.loads((run_folder / "summary.json").read_text("utf-8"))["last"][metric])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if math.isfinite(value) else None


def check_ckpt_path(reference: str, found: Path, own: Path) -> None:
    """Refuse that a job of a sweep continues a run that is not its own.

    Args:
        reference: what was asked for.
        found: the folder of the run that it names.
        own: the folder of the job.

    Raises:
        UserError: says what to do instead.
    """
    if found.resolve() == own.resolve():
        return
    raise UserError(
        f"ckpt_path={reference}: a run is continued by one command, not by the jobs of a sweep, which would "
        "all write into it. Leave -m out, with one value for each setting; or begin new runs from its weights with "
        f"{setting('init.run', reference)} init=from_run in place of ckpt_path. A sweep goes on by resume_sweep=last."
    )
