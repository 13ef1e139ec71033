from pathlib import Path

import pytest

from .command import Commands, Lab, new_lab


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs."""
    from vidlab.lab.tracking.store import open_client

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def lab(commands: Commands, empty_store: Path, tmp_path: Path) -> Lab:
    """A fresh working folder."""
    return new_lab(commands, tmp_path / "work", empty_store)
