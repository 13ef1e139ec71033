"""Where MLflow keeps its runs: checked and created early, so a wrong address costs seconds."""

import logging
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vidlab.errors import UserError

SQLITE = "sqlite:///"
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_SECONDS = 5.0


def short(error: BaseException) -> str:
    """The class and the first line of an error's message, at most 200 characters."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"


def absolute_uri(uri: str) -> str:
    """Resolve a relative sqlite path against the current folder; refuse file stores, as MLflow does."""
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().resolve()}"
    if not uri or ("://" not in uri.replace("file://", "") and not uri.startswith("databricks")):
        raise UserError(
            f"logger.uri={uri!r} is not a tracking store: MLflow no longer accepts plain folders. Use "
            "sqlite:///mlflow.db or the address of a server such as http://localhost:5000."
        )
    return uri


def open_client(uri: str) -> Any:
    """An MLflow client whose failing calls take seconds, not minutes; MLflow's own variables override it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)  # 60 lines on creating a database
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    return MlflowClient(uri)


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
    from filelock import FileLock

    database = Path(uri.removeprefix(SQLITE))
    artifact_location = artifact_location or str(database.parent / "mlruns" / re.sub(r"[^\w.-]", "_", experiment))
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            with database.open("ab+") as file:  # found here, a bad file costs no minutes of retries in MLflow
                file.seek(0)
                header = file.read(16)
            if header and header != b"SQLite format 3\0":
                raise UserError(f"logger.uri={uri}: {database} is not an sqlite database; choose another file.")
            return _experiment_id(uri, experiment, artifact_location)
    except OSError as error:
        raise UserError(
            f"logger.uri={uri}: cannot write {error.filename or database} ({error.strerror}). "
            "Choose a folder you can write to, or logger=none."
        ) from error


def _check_database_port(uri: str) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind in DATABASE_PORTS and parts.hostname:
        address = (parts.hostname, parts.port or DATABASE_PORTS[kind])
        try:
            socket.create_connection(address, CONNECT_SECONDS).close()
        except OSError as error:
            raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: Exception) -> UserError:
    reason: BaseException = error
    while inner := reason.__cause__ or reason.__context__:  # "connection refused" lies at the bottom
        reason = inner
    return UserError(
        f"logger.uri={_without_password(uri)}: the MLflow store does not answer ({short(reason)[:160]}). "
        "Start it, correct the address, or use logger.uri=sqlite:///mlflow.db or logger=none."
    )


def _experiment_id(uri: str, name: str, artifact_location: str | None) -> str:
    try:
        client = open_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            return _create_experiment(client, name, artifact_location)
    except Exception as error:
        raise _unreachable(uri, error) from error
    if found.lifecycle_stage != "active":
        raise UserError(
            f"logger.experiment={name!r} was deleted from {_without_password(uri)}; choose another name, or "
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


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def find_run(uri: str, run_id: str, key: str) -> Any:
    """The active MLflow run ``run_id``; ``key`` names the configuration key in messages.

    Raises:
        UserError: the store has no such run, or it was deleted.
    """
    uri = absolute_uri(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise UserError(f"{key}={run_id}: looks like an MLflow run id, but there is no store {uri}.")
    _check_database_port(uri)
    try:
        run = open_client(uri).get_run(run_id)
    except Exception as error:
        message = f"{key}={run_id}: not found in {_without_password(uri)} ({short(error)})."
        raise UserError(message) from error
    if run.info.lifecycle_stage != "active":
        raise UserError(f"{key}={run_id}: the run was deleted; restore it with `mlflow runs restore`.")
    return run
