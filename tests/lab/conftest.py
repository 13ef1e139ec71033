from pathlib import Path

import pytest

from vidlab.lab.tracking import store


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """A database made once, because creating its tables takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.with_experiment_ready(f"sqlite:///{path}", "empty")
    return path
