"""Logs scores to the MLflow run of the model that they belong to."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidlab.errors import UserError
from vidlab.lab.evaluation.report import Evaluated
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
from vidlab.lab.tracking.mlflow_names import legal_name
from vidlab.lab.tracking.store import absolute_uri, find_run, open_client, short
from vidlab.redaction import redact

MAX_BATCH = 1000


def store_scores(uri: str | None, subject: Evaluated) -> None:
    """Log ``eval/<series>/<metric>`` and the ends of intervals to the subject's MLflow run, at the checkpoint's step.

    What the name of the series stands for goes to a tag. A store that fails costs a warning, never the report.
    """
    if uri is None or subject.mlflow_run_id is None or subject.series is None:
        return
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    values = subject.series.scalars(subject.scores.results)
    points = [Metric(legal_name(name), value, now, subject.step) for name, value in values.items()]
    try:
        find_run(uri, subject.mlflow_run_id, "run")
        client = open_client(absolute_uri(uri))
        for start in range(0, len(points), MAX_BATCH):
            client.log_batch(subject.mlflow_run_id, metrics=points[start : start + MAX_BATCH])
        client.set_tag(subject.mlflow_run_id, f"vidlab.eval.{subject.series.name}", redact(subject.series.text))
    except Exception as error:
        warnings.warn(f"MLflow did not store the scores of {subject.name} ({short(error)})", stacklevel=2)


def store_evaluation(
    uri: str | None,
    name: str,
    folder: Path,
    subjects: Sequence[tuple[Evaluated, Mapping[str, float]]],
    files: Sequence[Path],
) -> None:
    """Log a comparison as an MLflow run of its own, in the experiment ``<name>-evaluations``.

    Metrics are ``<subject>/<metric>`` and ``<subject>/<fact>``. A store that fails costs a warning, never the report.

    Args:
        uri: the store; None keeps nothing.
        name: the experiment of the runs.
        folder: of the report; its name is the run's.
        subjects: each with further numbers by name.
        files: kept as artifacts.
    """
    if uri is None:
        return
    logger = MLflowLogger(uri, f"{name}-evaluations", folder.name, system_metrics=False, folder=folder)
    try:
        logger.start()
    except UserError as error:
        warnings.warn(f"MLflow did not store the evaluation ({short(error)})", stacklevel=2)
        return
    logger.set_tags({f"vidlab.subject.{place}": one.source for place, (one, _) in enumerate(subjects)})
    for one, facts in subjects:
        values = {metric: result.value for metric, result in one.scores.results.items()} | dict(facts)
        logger.log_metrics({f"{one.name}/{metric}": value for metric, value in values.items()}, one.step)
    for path in files:
        logger.log_artifact(path)
    logger.close("success")
