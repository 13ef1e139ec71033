"""Metrics on their way to a slow store: sent in batches from a background thread, none lost."""

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidlab.files import written_aside
from vidlab.lab.tracking.store import short

MAX_METRICS = 1000  # MLflow's limit for one call


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric; ``timestamp`` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


def send_batch(client: Any, run_id: str, points: Sequence[MetricPoint]) -> None:
    """Log points to an MLflow run, in one call."""
    from mlflow.entities import Metric

    metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
    client.log_batch(run_id, metrics=metrics)


def write_points(path: Path, points: Sequence[MetricPoint]) -> None:
    """Make ``path`` hold exactly these points, a line each; without points there is no file.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    if not points:
        path.unlink(missing_ok=True)
        return
    with written_aside(path) as aside:
        aside.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points))


def keep_unsent(path: Path, points: Sequence[MetricPoint]) -> bool:
    """Write points that reached no store to a file; a warning, and False, where that cannot be written either."""
    try:
        write_points(path, points)
    except OSError as error:
        lost = f"{len(points)} metric values reached neither MLflow nor {path} ({error.strerror})"
        warnings.warn(lost, RuntimeWarning, stacklevel=4)
        return False
    return True


def read_points(path: Path) -> list[MetricPoint]:
    """What ``write_points`` wrote; lines that are damaged are left out with a warning."""
    points, damaged = [], 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            points.append(_point(line))
        except (ValueError, TypeError, RecursionError):
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged lines are left out", RuntimeWarning, stacklevel=2)
    return points


def _point(line: bytes) -> MetricPoint:
    """A line of ``write_points``.

    Raises:
        ValueError, TypeError, RecursionError: it is none.
    """
    point = MetricPoint(**json.loads(line))
    if type(point.key) is not str or type(point.value) not in (int, float):
        raise TypeError("no metric")
    if type(point.step) is not int or type(point.timestamp) is not int:
        raise TypeError("no step or no time")
    return point


class MetricQueue:
    """Metrics on their way to the store.

    A background thread sends what is pending every ``seconds``, or as soon as ``size`` values wait, in the
    order of ``add``. What cannot be sent stays pending and is tried again later; the first failure warns.
    """

    def __init__(self, send: Callable[[Sequence[MetricPoint]], None], seconds: float | int, size: int) -> None:
        self._send, self._seconds, self._size = send, seconds, min(size, MAX_METRICS)
        self._pending: list[MetricPoint] = []
        self._lock, self._one_sender = threading.Lock(), threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._broken = self._warned = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-metrics")
        self._thread.start()

    def add(self, points: Sequence[MetricPoint]) -> None:
        """Queue values; returns at once."""
        with self._lock:
            self._pending.extend(points)
            full = len(self._pending) >= self._size
        if full and not self._broken:  # a broken store is only tried again on time
            self._wake.set()

    def flush(self) -> None:
        """Send everything pending now, in calls of at most 1000 values; on failure the rest stays pending."""
        with self._one_sender:
            while batch := self._first():
                try:
                    self._send(batch)
                except Exception as error:  # whatever the store does, training goes on
                    self._broken = True
                    self._warn(error)
                    return
                with self._lock:
                    del self._pending[: len(batch)]
            self._broken = False

    def settle(self) -> list[MetricPoint]:
        """Send everything pending unless the store failed the last time; returns what is left."""
        if not self._broken:
            self.flush()
        with self._lock:
            return list(self._pending)

    def close(self) -> list[MetricPoint]:
        """Stop the thread, try to send a last time, and return what could not be sent."""
        self._closed = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.flush()
        return list(self._pending)

    def _first(self) -> list[MetricPoint]:
        with self._lock:
            return self._pending[:MAX_METRICS]

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self.flush()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            message = f"MLflow did not take the metrics ({short(error)}); the run goes on and tries again later"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
