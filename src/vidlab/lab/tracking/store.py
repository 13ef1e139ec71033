"""Where MLflow keeps its runs: checked and created early, so a wrong address costs seconds."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vidlab.errors import UserError
from vidlab.lab.cli.credentials import complete
from vidlab.lab.tracking.abandoned import mark_abandoned
from vidlab.lab.tracking.sqlite_store import artifact_folder, locked, make_ready, repair
from vidlab.redaction import redact

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_SECONDS = 5.0


def short(error: BaseException) -> str:
    """The class and the first line of the message of an error's cause, at most 200 characters."""
    while error.__cause__ is not None:  # databases and servers wrap what they met
        error = error.__cause__
    text = str(error).strip() or "no message"
    return redact(f"{type(error).__name__}: {text.splitlines()[0][:200]}")


def absolute_uri(uri: str) -> str:
    """Resolve a relative sqlite path against the current folder; refuse file stores, as MLflow does.

    An address that was recorded without its password is completed from the environment; messages ``redact`` it.
    """
    uri = complete(uri)
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().resolve()}"
    if not uri or ("://" not in uri.replace("file://", "") and not uri.startswith("databricks")):
        raise UserError(
            f"logger.uri={redact(uri)!r} is not a tracking store: MLflow no longer accepts plain folders. Use "
            "sqlite:///mlflow.db or the address of a server such as http://localhost:5000."
        )
    return uri


def open_client(uri: str) -> Any:
    """An MLflow client whose failing calls take seconds, not minutes; MLflow's own variables override it."""
    _calm_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _calm_mlflow() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # 60 lines on creating a database
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that it also raises
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)


def with_experiment_ready(uri: str, experiment: str, artifact_location: str | None = None) -> str:
    """Create the store and the experiment once, and return the experiment's id.

    Two processes that create one sqlite database together break it, so this takes a file lock; call it before
    a sweep starts its jobs. Artifacts of a sqlite store go to ``mlruns/<experiment>`` beside the database.

    Raises:
        UserError: the store cannot be reached or written, or the experiment was deleted; takes seconds.
    """
    uri = absolute_uri(uri)
    if not uri.startswith(SQLITE):
        _check_database_port(uri)
        return _experiment_id(uri, experiment, artifact_location)
    database = Path(uri.removeprefix(SQLITE))
    artifact_location = artifact_location or str(artifact_folder(database, experiment))
    with store_errors(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        with locked(database):
            _calm_mlflow()
            make_ready(database)
            return _experiment_id(uri, experiment, artifact_location)


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what a store raises into a message that says what to do.

    Raises:
        UserError: for any error.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if not uri.startswith(SQLITE):
            raise _unusable(uri, error) from error
        place = error.filename or uri.removeprefix(SQLITE)
        raise UserError(
            f"logger.uri={uri}: cannot write {place} ({error.strerror or error}). Free space, "
            "choose a folder you can write to, or logger=none."
        ) from error
    except Exception as error:
        raise _unusable(uri, error) from error


def _check_database_port(uri: str) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind in DATABASE_PORTS and parts.hostname:
        address = (parts.hostname, parts.port or DATABASE_PORTS[kind])
        try:
            socket.create_connection(address, CONNECT_SECONDS).close()
        except OSError as error:
            raise _unusable(uri, error) from error


def _unusable(uri: str, error: Exception) -> UserError:
    reason: BaseException = error
    while inner := reason.__cause__ or reason.__context__:  # "connection refused" lies at the bottom
        reason = inner
    if uri.startswith(SQLITE):
        return UserError(
            f"logger.uri={uri}: the MLflow database cannot be used ({short(reason)[:160]}). Free disk space, choose "
            "another place such as logger.uri=sqlite:////folder/mlflow.db, or use logger=none."
        )
    return UserError(
        f"logger.uri={redact(uri)}: the MLflow store does not answer ({short(reason)[:160]}). "
        "Start it, correct the address, or use logger.uri=sqlite:///mlflow.db or logger=none."
    )


def _experiment_id(uri: str, name: str, artifact_location: str | None) -> str:
    with store_errors(uri):
        client = open_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            return _create_experiment(client, name, artifact_location)
        if found.lifecycle_stage == "active":
            mark_abandoned(client, found.experiment_id)
    if found.lifecycle_stage != "active":
        raise UserError(
            f"logger.experiment={name!r} was deleted from {redact(uri)}; choose another name, or "
            "restore it with `mlflow experiments restore`."
        )
    return str(found.experiment_id)


def _create_experiment(client: Any, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=artifact_location))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # on a server, another process may have been faster
        if found is None:
            raise
        return str(found.experiment_id)


class MissingRunError(UserError):
    """The store answers, and has no such run."""


def find_run(uri: str, run_id: str, key: str) -> Any:
    """The active MLflow run ``run_id``; ``key`` names the configuration key in messages.

    Raises:
        MissingRunError: the store has no such run, or it was deleted.
        UserError: the store cannot be used.
    """
    uri = absolute_uri(uri)
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE))
        if not database.is_file():
            raise MissingRunError(f"{key}={run_id}: looks like an MLflow run id, but there is no store {uri}.")
        with store_errors(uri):
            repair(database)
        if not database.is_file():
            raise MissingRunError(f"{key}={run_id}: the store {uri} has no runs.")
    _check_database_port(uri)
    with store_errors(uri):
        client = open_client(uri)
        run = _get_run(client, uri, run_id, key)
        if mark_abandoned(client, run.info.experiment_id):
            run = _get_run(client, uri, run_id, key)
    if run.info.lifecycle_stage != "active":
        raise MissingRunError(f"{key}={run_id}: the run was deleted; restore it with `mlflow runs restore`.")
    return run


def _get_run(client: Any, uri: str, run_id: str, key: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise MissingRunError(f"{key}={run_id}: not found in {redact(uri)} ({short(error)}).") from error


def run_to_continue(uri: str | None, run_id: str | None) -> str | None:
    """``run_id`` if the store has that run; None, with a warning, where the store was deleted or replaced.

    Raises:
        UserError: the store cannot be used.
    """
    if uri is None or run_id is None:
        return run_id
    try:
        find_run(uri, run_id, "ckpt_path")
    except MissingRunError:
        log.warning(
            "%s has no MLflow run %s, in which this run began: a new MLflow run goes on from the checkpoint. Points up "
            "to there are only in the old one.",
            redact(absolute_uri(uri)), run_id,
        )  # fmt: skip
        return None
    return run_id
