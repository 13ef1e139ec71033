from pathlib import Path

import pytest

from .command import Commands, Lab, new_lab


@pytest.fixture
def lab(commands: Commands, empty_store: Path, tmp_path: Path) -> Lab:
    """A fresh working folder."""
    return new_lab(commands, tmp_path / "work", empty_store)
