"""The MLflow run of a sweep, above those of its jobs: the command, the state of every job, and the table at the end."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vidlab.command_line import command
from vidlab.files import write_json, write_text
from vidlab.lab.sweeps.record import JobRecord, SweepRecord, counted
from vidlab.lab.sweeps.table import differing
from vidlab.lab.tracking.abandoned import take_over
from vidlab.lab.tracking.heartbeat import birth
from vidlab.redaction import redact

MAX_TAG, MOST = 5000, 10_000
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def store_of(config: DictConfig) -> str | None:
    """The address of the store of a configuration; None where its logger has none."""
    return config.logger.get("uri") if config.get("logger") else None


class ParentRun:
    """The run in the store. Opening it fails with a message; what fails later costs a warning.

    Args:
        uri: of the store. The attribute holds it without a password.
        experiment_id: MLflow's number of the experiment.
        run_id: of the run.

    Attributes:
        page: where a browser shows the run.
    """

    def __init__(self, uri: str, experiment_id: str, run_id: str) -> None:
        from vidlab.lab.tracking.addresses import run_page
        from vidlab.lab.tracking.store import absolute_uri, open_client

        self._client = open_client(absolute_uri(uri))
        self._experiment_id, self.run_id = experiment_id, run_id
        self.uri = redact(absolute_uri(uri))
        self.page = run_page(self.uri, experiment_id, run_id)
        self._shown: dict[str, str] = {}

    @staticmethod
    def open(config: DictConfig, sweep: SweepRecord, folder: Path, resumed: bool) -> "ParentRun | None":
        """Begin the run of a sweep, or go on with it where the store still has it; None where there is no store.

        Raises:
            UserError: the store cannot be used.
        """
        uri = store_of(config)
        if uri is None:
            return None
        from vidlab.lab.tracking.store import absolute_uri, open_client, run_to_continue, store_errors
        from vidlab.lab.tracking.store import with_experiment_ready as ready

        logger = config.logger
        experiment = ready(uri, logger.get("experiment", config.name), logger.get("artifact_location"))
        known = run_to_continue(uri, sweep.parent_run_id)
        client = open_client(absolute_uri(uri))
        with store_errors(absolute_uri(uri)):
            known = known or (_begun_before(client, experiment, sweep) if resumed else None)
            if known is None:
                tags = {**tags_of(sweep, folder), **birth()}
                name = " ".join([sweep.kind, *sweep.arguments])[:80]
                known = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
            else:
                take_over(client, known)
        return ParentRun(uri, experiment, known)

    def tell(self, tags: Mapping[str, str], child: str | None = None) -> None:
        """Set tags of the run, or of a run below it."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, redact(value)[:MAX_TAG]) for key, value in tags.items()]
        for start in range(0, len(entries), 100):
            send = partial(self._client.log_batch, child or self.run_id, tags=entries[start : start + 100])
            self._attempt("tags", send)

    def show(self, sweep: SweepRecord) -> None:
        """The state of every job, where it has changed."""
        settings = differing([job.overrides for job in sweep.jobs])
        shown = {f"vidlab.job.{job.number}": in_words(job, one) for job, one in zip(sweep.jobs, settings, strict=True)}
        shown["vidlab.jobs"] = counted(sweep)
        self.tell({key: value for key, value in shown.items() if self._shown.get(key) != value})
        self._shown = shown

    def forget(self, kept: Mapping[int, str | None]) -> None:
        """Put runs of jobs that are begun anew among the deleted ones, from where MLflow can restore them.

        Args:
            kept: for each job that is to be run, the run that goes on, if any does.
        """

        def forget() -> None:
            children = f"tags.`mlflow.parentRunId` = '{self.run_id}'"
            for run in self._client.search_runs([self._experiment_id], children, max_results=MOST):
                number = run.data.tags.get("vidlab.job", "")
                if number.isdigit() and int(number) in kept and kept[int(number)] != run.info.run_id:
                    self._client.delete_run(run.info.run_id)

        self._attempt("which jobs are begun anew", forget)

    def remove(self) -> None:
        """Put the run of a sweep in which nothing began among the deleted ones."""
        self.close("failed")
        self._attempt("that nothing was begun", lambda: self._client.delete_run(self.run_id))

    def keep(self, sweep: SweepRecord, markdown: str, rows: list[dict[str, Any]]) -> None:
        """Store the sweep's record and its table, as ``sweep/sweep.json``, ``table.md`` and ``table.json``."""
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            write_json(folder / "sweep.json", asdict(sweep))
            write_text(folder / "table.md", markdown)
            write_json(folder / "table.json", rows)
            self._attempt("the table", lambda: self._client.log_artifacts(self.run_id, str(folder), "sweep"))

    def keep_files(self, files: Sequence[Path], place: str) -> None:
        """Store files with the run, in a folder of this name."""
        for path in files:
            self._attempt(path.name, partial(self._client.log_artifact, self.run_id, str(path), place))

    def close(self, state: str) -> None:
        """End the run: ``finished``, ``failed`` or ``interrupted``."""
        self._attempt("the end of the sweep", lambda: self._client.set_terminated(self.run_id, ENDED[state]))

    def _attempt(self, what: str, call: Callable[[], Any]) -> None:
        from vidlab.lab.tracking.store import short

        try:
            call()
        except Exception as error:
            warnings.warn(f"MLflow did not store {what} of the sweep ({short(error)})", RuntimeWarning, stacklevel=3)


def _begun_before(client: Any, experiment_id: str, sweep: SweepRecord) -> str | None:
    """The run that a start opened which was killed before it could write that down."""
    mine = f"tags.`vidlab.sweep` = '{sweep.id}' and tags.`vidlab.kind` = 'sweep'"
    found = client.search_runs([experiment_id], mine, max_results=1)
    return str(found[0].info.run_id) if found else None


def tags_of(sweep: SweepRecord, folder: Path) -> dict[str, str]:
    """What a sweep's run is begun with."""
    line = command_of(sweep)
    return {
        "vidlab.kind": "sweep",
        "vidlab.sweep": sweep.id,
        "vidlab.command": line,
        "vidlab.run_folder": str(folder.absolute()),
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": f"`{line}`\n\n{len(sweep.jobs)} jobs; files in `{folder}`",
    }


def command_of(sweep: SweepRecord) -> str:
    """The command of a sweep, as it can be pasted."""
    if sweep.is_graph:
        return command(sweep.program, *sweep.arguments)
    return command(f"{sweep.program}.py", "-m", *sweep.arguments)


def in_words(job: JobRecord, settings: Mapping[str, str]) -> str:
    """The state of a job, the settings in which it differs from others, and why it failed."""
    differs = " ".join(f"{key}={value}" for key, value in settings.items())
    return ": ".join(part for part in (job.state, differs, job.message) if part)
