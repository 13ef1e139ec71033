"""Scores among the metrics of the run they belong to."""

import time
import warnings

from vidlab.callbacks.evaluation import scalars
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.store import absolute_uri, find_run, open_client, short
from vidlab.lab.tracking import legal_name

MAX_BATCH = 1000


def store_scores(uri: str | None, subject: Evaluated) -> None:
    """Log ``eval/<metric>`` with ``/low``, ``/high`` and ``/N`` to the subject's MLflow run, at the checkpoint's step.

    A store that fails costs a warning, never the report.
    """
    if uri is None or subject.mlflow_run_id is None:
        return
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    results = subject.scores.results
    values = scalars(results) | {f"eval/{name}/N": float(result.clips) for name, result in results.items()}
    points = [Metric(legal_name(name), value, now, subject.step) for name, value in values.items()]
    try:
        find_run(uri, subject.mlflow_run_id, "run")
        client = open_client(absolute_uri(uri))
        for start in range(0, len(points), MAX_BATCH):
            client.log_batch(subject.mlflow_run_id, metrics=points[start : start + MAX_BATCH])
    except Exception as error:
        warnings.warn(f"MLflow did not store the scores of {subject.name} ({short(error)})", stacklevel=2)
