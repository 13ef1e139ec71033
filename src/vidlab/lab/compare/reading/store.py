"""Many runs of an MLflow store at once, with the histories of the metrics that a comparison shows."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vidlab.errors import UserError
from vidlab.lab.compare.reading.runs import Curve
from vidlab.lab.tracking.store import SQLITE, absolute_uri, open_client, store_errors
from vidlab.redaction import redact

# What pages show; the names of everything else of a run (learning rates, system metrics) are not read.
SHOWN = ("val/", "eval/", "eval-low/", "eval-high/", "cost/")
LEFT_OUT = ("val/x0_mse/", "cost/samples")
MOST_IDS = 500  # of one query
MOST_RUNS = 10_000
MOST_POINTS = 1000  # of a curve
COST_POINTS = 200
Point = tuple[str, str, int, float]  # run, metric, step, value


@dataclass(frozen=True)
class StoredRun:
    """A run of a store.

    Args:
        run_id: of it.
        name: as MLflow shows it.
        status: MLflow's: FINISHED, FAILED, KILLED or RUNNING.
        artifacts: where its files are.
        tags: of it.
        curves: by metric.
    """

    run_id: str
    name: str
    status: str
    artifacts: str
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def children(uri: str, tag: str, value: str) -> list[str]:
    """The ids of active runs that have a tag of this value, oldest first.

    Args:
        uri: of the store.
        tag: such as ``mlflow.parentRunId``.
        value: of it.

    Raises:
        UserError: the store cannot be used.
    """
    uri = absolute_uri(uri)
    if uri.startswith(SQLITE):
        with _Database(uri) as database:
            found = database.execute(
                "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = ? and t.value = ? and r.lifecycle_stage = 'active' order by r.start_time",
                (tag, value),
            )
            return [run for (run,) in found]
    with store_errors(uri):
        client = open_client(uri)
        experiments = [one.experiment_id for one in client.search_experiments(max_results=MOST_RUNS)]
        wanted = f"tags.`{tag}` = '{value}'"
        runs = client.search_runs(experiments, wanted, max_results=MOST_RUNS, order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]


def read_runs(uri: str, run_ids: Sequence[str]) -> dict[str, StoredRun]:
    """Runs by id, without those that the store does not have or that were deleted.

    Args:
        uri: of the store.
        run_ids: in any order.

    Raises:
        UserError: the store cannot be used.
    """
    uri = absolute_uri(uri)
    if not uri.startswith(SQLITE):
        with store_errors(uri):
            return dict(_from_server(open_client(uri), run_ids))
    found: dict[str, StoredRun] = {}
    with _Database(uri) as database:
        for start in range(0, len(run_ids), MOST_IDS):
            found |= _from_database(database, run_ids[start : start + MOST_IDS])
    return found


class _Database:
    """A database of MLflow, opened for reading; its errors become messages."""

    def __init__(self, uri: str) -> None:
        path = Path(uri.removeprefix(SQLITE))
        if not path.is_file():
            raise UserError(f"--uri {redact(uri)}: there is no such database. Name the store of the runs.")
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True, timeout=20)
        return self._connection

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with closing(self._connection):
            if isinstance(error, sqlite3.Error):
                raise UserError(f"--uri {SQLITE}{self._path}: it is not a database of MLflow ({error}).") from error


def _from_database(database: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, StoredRun]:
    among = f"run_uuid in ({','.join('?' * len(run_ids))})"
    runs = database.execute(
        f"select run_uuid, name, status, artifact_uri from runs where {among} and lifecycle_stage = 'active'", run_ids
    )
    found = {run: StoredRun(run, name or run, status or "RUNNING", uri or "") for run, name, status, uri in runs}
    for run, key, value in database.execute(f"select run_uuid, key, value from tags where {among}", run_ids):
        if run in found:
            found[run].tags[key] = value
    keys = [key for (key,) in database.execute(f"select distinct key from latest_metrics where {among}", run_ids)]
    shown = [key for key in keys if is_shown(key)]
    marks = ",".join("?" * len(shown))
    columns = "select run_uuid, key, step, case when is_nan then null else value end, timestamp from"
    wanted = f"{among} and key in ({marks})"
    (longest,) = database.execute(f"select max(step) from latest_metrics where {wanted}", (*run_ids, *shown)).fetchone()
    # costs are logged with every step, and between two of them they grow evenly
    stride = max(1, (longest or 0) // COST_POINTS)
    points = database.execute(
        f"{columns} metrics where {wanted} and (key not like 'cost/%' or step % {stride} = 0) "
        f"union {columns} latest_metrics where {wanted} order by 1, 2, 3, 5",
        (*run_ids, *shown, *run_ids, *shown),
    )
    return _with_curves(found, (point[:4] for point in points))


def is_shown(metric: str) -> bool:
    """Whether a comparison reads the history of a metric."""
    return metric.startswith(SHOWN) and not metric.startswith(LEFT_OUT)


def _with_curves(runs: dict[str, StoredRun], points: Iterable[Point | tuple]) -> dict[str, StoredRun]:
    """Add histories; of two values at one step the later one counts, and long curves are thinned out."""
    grouped: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for run, key, step, value in points:
        grouped[run, key][step] = np.nan if value is None else value
    for (run, key), by_step in grouped.items():
        if run in runs:
            runs[run].curves[key] = thinned(by_step)
    return runs


def thinned(by_step: dict[int, float]) -> Curve:
    """A curve of at most ``MOST_POINTS`` points, evenly taken, the first and the last among them."""
    steps = np.fromiter(by_step, np.int64, len(by_step))
    values = np.fromiter(by_step.values(), np.float64, len(by_step))
    if len(steps) > MOST_POINTS:
        kept = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))
        steps, values = steps[kept], values[kept]
    return Curve(steps, values)


def _from_server(client: Any, run_ids: Sequence[str]) -> Iterator[tuple[str, StoredRun]]:
    from mlflow.exceptions import MlflowException

    for run_id in run_ids:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        if run.info.lifecycle_stage != "active":
            continue
        info = run.info
        stored = StoredRun(run_id, info.run_name or run_id, info.status, info.artifact_uri, dict(run.data.tags))
        for key in filter(is_shown, run.data.metrics):
            history = sorted(client.get_metric_history(run_id, key), key=lambda one: (one.step, one.timestamp))
            stored.curves[key] = thinned({one.step: one.value for one in history})
        yield run_id, stored
