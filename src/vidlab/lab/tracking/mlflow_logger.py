"""MLflow tracking that never stops a training: clear errors at the start, nothing lost at the end."""

import atexit
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from vidlab.lab.cli.signals import held
from vidlab.lab.runs.config_record import store_config
from vidlab.lab.tracking.abandoned import take_over
from vidlab.lab.tracking.addresses import page
from vidlab.lab.tracking.heartbeat import birth
from vidlab.lab.tracking.metric_queue import MetricPoint, MetricQueue, keep_unsent, read_points, send_batch
from vidlab.lab.tracking.mlflow_names import MAX_PARAMS, flatten, legal_name, legal_tags, store_params
from vidlab.lab.tracking.mlflow_page import log_dataset, store_video
from vidlab.lab.tracking.store import absolute_uri, find_run, open_client, short, store_errors, with_experiment_ready
from vidlab.redaction import redact

STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflowLogger(Logger):
    """Lightning logger over one MLflow run. Opened on first use; ranks above 0 do nothing.

    A store that fails after the start never stops a training: metrics stay queued, are tried again and end in
    ``<folder>/metrics-unsent.jsonl``, from where a continued run sends them; an image, video or file that cannot be
    stored is named in a warning.
    ``finalize``, which Lightning also calls between validate and fit, only sends what is queued and remembers
    the status; ``close`` ends the run. A process that exits without ``close`` gets the last status of
    ``finalize``, and KILLED if there was none.

    Args:
        uri: ``sqlite:///relative/or/absolute.db`` or the address of a tracking server. The attribute holds it
            without a password.
        experiment: name of the experiment, created when missing.
        run_name: name shown in the run table; MLflow invents one otherwise.
        run_id: continue this run instead of starting one.
        artifact_location: where a new experiment keeps its files; beside the database by default.
        tags: tags of the run.
        system_metrics: log CPU, memory and GPU use every 10 s as ``system/...``.
        flush_seconds: send queued metrics at least this often.
        flush_size: send as soon as this many values are queued.
        folder: the run's folder, stored as tag ``vidlab.run_folder``.
    """

    def __init__(
        self,
        uri: str = "sqlite:///mlflow.db",
        experiment: str = "vidlab",
        run_name: str | None = None,
        run_id: str | None = None,
        artifact_location: str | None = None,
        tags: Mapping[str, Any] | None = None,
        system_metrics: bool = True,
        flush_seconds: float | int = 10.0,
        flush_size: int = 1000,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._address = absolute_uri(uri)
        self.uri = redact(self._address)
        self._experiment, self._run_name, self._run_id = experiment, redact(run_name or "") or None, run_id
        self._artifact_location, self._system_metrics = artifact_location, system_metrics
        self._flush_seconds, self._flush_size = flush_seconds, flush_size
        self._folder = Path(folder).resolve() if folder else None
        self._unsent_path = (self._folder or Path.cwd()) / "metrics-unsent.jsonl"
        self._tags = dict(tags or {}) | ({"vidlab.run_folder": self._folder} if self._folder else {})
        self._status = "interrupted"
        self._client: Any = None
        self._experiment_id: str | None = None
        self._queue: MetricQueue | None = None
        self._monitor: Any = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None, "_queue": None, "_monitor": None}

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment

    @property
    def version(self) -> str | None:
        """The run id, once the run is open."""
        return self._run_id

    @property
    def run_id(self) -> str | None:
        """The run id; opens a new run. None on ranks above 0 of a new run."""
        if self._run_id is None:
            self.start()
        return self._run_id

    @property
    def save_dir(self) -> str | None:
        """The run's folder."""
        return str(self._folder) if self._folder else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The MLflow client, for what this logger does not offer; use it with ``run_id``, which opens a new run.

        The client alone opens none: Lightning asks for it before it has looked at the data.
        """
        if self._client is None and self._experiment_id is None:
            self.check()
        return self._client or open_client(self._address)

    @property
    def page(self) -> str | None:
        """The address at which a browser shows the runs of the experiment, once the store has been reached."""
        return page(self.uri, self._experiment_id) if self._experiment_id else None

    @rank_zero_only
    def check(self) -> None:
        """Find a wrong address or run now, without opening a run; creates the store and the experiment.

        Raises:
            UserError: the store cannot be used, or ``run_id`` is unknown to it.
        """
        self._experiment_id = with_experiment_ready(self._address, self._experiment, self._artifact_location)
        if self._run_id is not None:
            find_run(self._address, self._run_id, "logger.run_id")

    @rank_zero_only
    def start(self) -> None:
        """Open the run now; see ``check`` for the errors."""
        self._open()

    def _open(self) -> Any:
        if self._client is not None:
            return self._client
        if self._experiment_id is None:  # otherwise asked before the data was looked at
            self.check()
        client, resumed = open_client(self._address), self._run_id is not None
        with held(), store_errors(self._address):  # a run that is begun is also ended
            tags = birth() | self._tags
            self._run_id = _begun(client, self._experiment_id, self._run_id, self._run_name, tags)
            self._client = client
            self._queue = MetricQueue(partial(send_batch, client, self._run_id), self._flush_seconds, self._flush_size)
            atexit.register(self.close)
        self.set_tags(self._tags)
        self._queue.add(self._unknown(read_points(self._unsent_path)))
        if self._system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=resumed, tracking_uri=self._address)
            self._monitor.start()
        return client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Queue scalars; returns at once. Illegal characters of names become ``_``."""
        self._open()
        assert self._queue is not None
        now = time.time_ns() // 1_000_000
        self._queue.add([MetricPoint(legal_name(k), float(v), step or 0, now) for k, v in metrics.items()])

    @rank_zero_only
    def settle(self) -> None:
        """Bring queued metrics to the store, or to ``metrics-unsent.jsonl``: a kill from now on loses none of them."""
        if self._queue is not None:
            keep_unsent(self._unsent_path, self._queue.settle())

    @rank_zero_only
    def fill(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step that this run may have logged before it was interrupted; known ones are left out."""
        self._open()
        assert self._queue is not None
        now = time.time_ns() // 1_000_000
        self._queue.add(self._unknown([MetricPoint(legal_name(k), v, step, now) for k, v in metrics.items()]))

    def _unknown(self, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        known: dict[str, set[int]] = {key: set() for key in sorted({point.key for point in points})}
        for key, steps in known.items():
            ask = partial(self._client.get_metric_history, self._run_id, key)
            self._attempt(f"what is missing of {key}", lambda: steps.update(metric.step for metric in ask()))  # noqa: B023
        return [point for point in points if point.step not in known[point.key]]

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Log nested settings as dotted parameters.

        MLflow never changes a parameter: of a continued run, new values of known parameters become tags
        ``resumed.<key>``.
        """
        flat = flatten(vars(params) if isinstance(params, Namespace) else params)
        self._attempt("parameters", lambda: self.set_tags(store_params(self._open(), str(self._run_id), flat)))

    @rank_zero_only
    def log_config(self, resolved_yaml: str) -> None:
        """Store the resolved configuration as ``config/config.yaml``.

        A continued run keeps the first one and adds ``config/config-resume-<n>.yaml`` and, when they differ,
        a ``.diff`` against the first.
        """
        text = redact(resolved_yaml)
        self._attempt("config", lambda: store_config(self._open(), str(self._run_id), text))

    @rank_zero_only
    def log_dataset(self, facts: Mapping[str, str]) -> None:
        """Add a data set to the inputs of the run: ``name``, ``digest``, ``source_type``, ``source``, ``profile``."""
        self._attempt("the data set", lambda: log_dataset(self._open(), str(self._run_id), facts))

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or replace tags of the run."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in legal_tags(tags).items()]
        for start in range(0, len(entries), MAX_PARAMS):
            send = partial(self._open().log_batch, self._run_id, tags=entries[start : start + MAX_PARAMS])
            self._attempt("tags", send)

    @rank_zero_only
    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Store a uint8 (H, W, 3) image under ``key``, shown with a step slider."""
        store = partial(self._open().log_image, self._run_id, image, key=legal_name(key), step=step)
        self._attempt(f"image {key}", store)

    @rank_zero_only
    def log_video(self, key: str, path: Path, step: int) -> None:
        """Store a video file as ``videos/<key>/step-000100.mp4``."""
        place = f"videos/{legal_name(key)}"
        self._attempt(f"video {key}", lambda: store_video(self._open(), str(self._run_id), place, path, step))

    @rank_zero_only
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file among the run's artifacts, inside ``folder``."""
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        self._attempt(f"file {path}", lambda: self._open().log_artifact(self._run_id, str(path), folder))

    def _attempt(self, what: str, call: Callable[[], Any]) -> None:
        self._open()  # failing to open is an error; failing later is a warning
        try:
            call()
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                warnings.warn(f"MLflow did not store {what} ({short(error)})", RuntimeWarning, stacklevel=3)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is queued and remember ``status``; the run stays open (see ``close``)."""
        self._status = status
        if self._queue is not None:
            self._queue.flush()

    @rank_zero_only
    def close(self, status: str | None = None) -> None:
        """End the run as "success", "failed" or "interrupted". Using the logger again continues the run."""
        self._status = status or self._status
        atexit.unregister(self.close)
        if self._client is None or self._queue is None:
            return
        if self._monitor is not None:
            self._attempt("the last system metrics", self._monitor.finish)
        unsent = self._queue.close()
        if keep_unsent(self._unsent_path, unsent) and unsent:
            kept = f"{len(unsent)} metric values did not reach MLflow; they are in {self._unsent_path}"
            warnings.warn(kept, stacklevel=3)
        client, ended = self._client, STATUSES.get(self._status, "FAILED")
        self._attempt("the end of the run", lambda: client.set_terminated(self._run_id, ended))
        self._client = self._queue = self._monitor = None


def _begun(
    client: Any, experiment_id: str | None, run_id: str | None, run_name: str | None, tags: Mapping[str, Any]
) -> str:
    """The id of a new run, or of the one that is continued."""
    if run_id is None:  # with whose it is: a kill from now on leaves a run that says so
        return str(client.create_run(experiment_id, run_name=run_name, tags=legal_tags(tags)).info.run_id)
    take_over(client, run_id)
    return run_id


class NoLogger(Logger):
    """``logger=none``: the interface of ``MLflowLogger``, keeping nothing."""

    name = "none"
    version = None
    run_id = uri = page = None

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str | None:
        """The run's folder."""
        return str(self._folder) if self._folder else None

    def check(self) -> None:
        """Nothing to find."""

    def start(self) -> None:
        """Nothing to open."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Not kept."""

    def settle(self) -> None:
        """Nothing waits."""

    def fill(self, metrics: Mapping[str, float], step: int) -> None:
        """Not kept."""

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Not kept."""

    def log_config(self, resolved_yaml: str) -> None:
        """Not kept."""

    def log_dataset(self, facts: Mapping[str, str]) -> None:
        """Not kept."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Not kept."""

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Not kept."""

    def log_video(self, key: str, path: Path, step: int) -> None:
        """Not kept."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Not kept."""

    def close(self, status: str | None = None) -> None:
        """Nothing to end."""
