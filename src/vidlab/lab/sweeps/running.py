"""A sweep from its first job to its table, whatever launches the jobs and whatever ends them."""

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from vidlab.command_line import setting
from vidlab.errors import UserError
from vidlab.lab.cli.hydra_main import JobFailedError
from vidlab.lab.cli.unused_folder import remove_unused
from vidlab.lab.runs.run_lock import held_lock
from vidlab.lab.sweeps.ending import report
from vidlab.lab.sweeps.parent import ParentRun
from vidlab.lab.sweeps.record import JOBS, RECORD, JobRecord, SweepRecord, read_sweep, write_job, write_sweep
from vidlab.lab.tracking.heartbeat import Heartbeat
from vidlab.lab.tracking.process_identity import this_process

LOCK = "sweep.lock"
OVER = ("metrics-unsent.jsonl", "run.json")  # of a run that is begun anew


@dataclass(frozen=True)
class PlannedJob:
    """A job that is to be: its command line, and its folder within the sweep's."""

    overrides: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Sweep:
    """A sweep that this process runs.

    Args:
        folder: of the sweep.
        resumed: whether it was begun by an earlier command.
    """

    folder: Path
    resumed: bool

    def add(self, jobs: Sequence[PlannedJob]) -> list[JobRecord]:
        """Plan further jobs."""
        sweep = read_sweep(self.folder)
        first = len(sweep.jobs)
        added = [JobRecord(first + place, job.overrides, folder=job.folder) for place, job in enumerate(jobs)]
        for job in added:
            sweep = sweep.having(job)
        write_sweep(self.folder, sweep)
        return added

    def to_run(self) -> list[JobRecord]:
        """The jobs that are missing, interrupted or failed; one that another process still runs is left to it."""
        jobs = read_sweep(self.folder).jobs
        for job in jobs:
            if job.state == "running" and job.process is not None:
                where = f"process {job.process.pid} on {job.process.host}"
                print(f"Job {job.number} is still run by {where}, and is left to it.", file=sys.stderr, flush=True)
        return [job for job in jobs if job.state not in ("finished", "running")]

    def words_for(self, job: JobRecord) -> list[str]:
        """What a job is launched with: its own words; of one that goes on, also its folder and its checkpoint."""
        words = list(job.overrides)
        if self.resumed:
            words.append(setting("hydra.sweep.subdir", job.folder))
        if has_checkpoint(self.folder, job):
            words.append(setting("ckpt_path", (self.folder / job.folder).absolute()))
        return words


def has_checkpoint(folder: Path, job: JobRecord) -> bool:
    """Whether a job has something to go on from."""
    place = folder / job.folder
    return (place / "checkpoints" / "last.ckpt").is_file() and (place / "run.json").is_file()


@contextmanager
def sweeping(config: DictConfig, jobs: Sequence[PlannedJob], arguments: Sequence[str]) -> Iterator[Sweep]:
    """Begin a sweep, or go on with that in its folder; at the end, its table, its MLflow run and what to type next.

    Args:
        config: of the sweep, composed without the values that differ among its jobs.
        jobs: those that are known at its start.
        arguments: what was typed, without ``-m``.

    Raises:
        UserError: the store cannot be used, or another process runs the sweep, or it had other jobs.
        JobFailedError: a job failed; all others have run.
    """
    folder = Path(config.hydra.sweep.dir)
    with held_lock(folder / LOCK, "this sweep is being run"), terminable():
        try:
            sweep, parent = _begin(config, folder, jobs, arguments)
        except BaseException:
            if not (folder / RECORD).is_file():
                clear(folder)
            raise
        pulse = Heartbeat(folder, _pulse(folder, parent))
        pulse.start()
        try:
            yield sweep
        except BaseException:
            pulse.stop()
            _end(folder, parent, interrupted=True)
            raise
        pulse.stop()
        _refuse_failed(_end(folder, parent, interrupted=False), folder)


def _begin(
    config: DictConfig, folder: Path, jobs: Sequence[PlannedJob], arguments: Sequence[str]
) -> tuple[Sweep, ParentRun | None]:
    resumed = (folder / RECORD).is_file()
    if resumed:
        record = read_sweep(folder)
        _check_same(record, jobs, folder)
    else:
        OmegaConf.save(config, folder / "multirun.yaml")
        planned = tuple(JobRecord(n, job.overrides, folder=job.folder) for n, job in enumerate(jobs))
        identity = {"id": folder.absolute().name, "experiment": str(config.name)}
        program = str(config.hydra.job.config_name)
        record = SweepRecord(**identity, parent_run_id=None, program=program, arguments=tuple(arguments),
                             begun=time.time_ns(), jobs=planned)  # fmt: skip
    parent = ParentRun.open(config, record, folder, resumed)
    record = replace(record, parent_run_id=parent.run_id if parent else None)
    write_sweep(folder, record)
    sweep = Sweep(folder, resumed)
    if resumed:
        begin_anew(folder, [job for job in record.jobs if job.state not in ("finished", "running")], parent)
    return sweep, parent


def _check_same(record: SweepRecord, jobs: Sequence[PlannedJob], folder: Path) -> None:
    planned = [job.overrides for job in jobs]
    if planned != [job.overrides for job in record.jobs][: len(planned)]:
        raise UserError(
            f"{folder} holds a sweep of other jobs: resume_sweep={record.id} alone goes on with it; for "
            "a new one choose another hydra.sweep.dir."
        )


def begin_anew(folder: Path, jobs: Sequence[JobRecord], parent: ParentRun | None) -> None:
    """Of jobs without a checkpoint, leave nothing that would be counted beside their new runs."""
    for job in jobs:
        if not has_checkpoint(folder, job):
            for name in OVER:
                (folder / job.folder / name).unlink(missing_ok=True)
    if parent is not None:
        parent.forget({job.number: job.run_id if has_checkpoint(folder, job) else None for job in jobs})


def _pulse(folder: Path, parent: ParentRun | None) -> Callable[[dict[str, str]], None]:
    def tell(tags: dict[str, str]) -> None:
        sweep = read_sweep(folder)
        write_sweep(folder, sweep)
        if parent is not None:
            parent.tell(tags)
            parent.show(sweep)

    return tell


def _end(folder: Path, parent: ParentRun | None, interrupted: bool) -> SweepRecord:
    sweep, own = read_sweep(folder), this_process()
    for job in sweep.jobs:
        if job.state == "running" and job.process == own:  # ended in a way that its own record could not tell
            write_job(folder, replace(job, state="interrupted"))
    sweep = read_sweep(folder)
    left = any((folder / job.folder / "run.json").is_file() for job in sweep.jobs)
    if not left and all(job.state in ("failed", "planned") for job in sweep.jobs):
        if parent is not None:
            parent.remove()
        clear(folder)
        return sweep
    write_sweep(folder, sweep)
    report(folder, sweep, parent, interrupted)
    return sweep


def _refuse_failed(sweep: SweepRecord, folder: Path) -> None:
    for job in sweep.jobs:
        if job.state == "failed":
            raise JobFailedError(f"job {job.number}: {job.message}", str(folder))


def clear(folder: Path) -> None:
    """Remove a sweep of which nothing is left but words; what is not the sweep's stays."""
    for name in (RECORD, LOCK):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / JOBS, ignore_errors=True)
    remove_unused(folder)


@contextmanager
def terminable() -> Iterator[None]:
    """Between jobs, SIGTERM ends the program in an order in which the sweep can be written down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        with contextlib.suppress(TypeError):  # set by something that is not Python
            signal.signal(signal.SIGTERM, before)
