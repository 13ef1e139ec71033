import shutil
from pathlib import Path

import pytest

from vidlab.lab.tracking import store


@pytest.fixture(scope="session")
def migrated(empty_store, tmp_path_factory) -> Path:
    """A database with an experiment."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, path)
    store.with_experiment_ready(f"sqlite:///{path}", "empty")
    return path
