"""What the end of a run says is there."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import Trainer

from vidlab.lab.runs.job import Job
from vidlab.lab.runs.next_commands import CliSelection
from vidlab.lab.runs.summary import Course, summarize


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("last.ckpt", "best.ckpt"), "runs/a/checkpoints/last.ckpt, best.ckpt"),
        (("last.ckpt",), "runs/a/checkpoints/last.ckpt"),  # data.val_clips=0
        ((), "none was written"),  # trainer.fast_dev_run
    ],
)
def test_checkpoints_and_commands_are_of_files_that_are_there(files, said, make_module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a"
    (folder / "checkpoints").mkdir(parents=True)
    for name in files:
        (folder / "checkpoints" / name).touch()
    trainer = MagicMock(spec=Trainer)
    trainer.configure_mock(
        callbacks=[], precision="32-true", datamodule=None, strategy=SimpleNamespace(root_device=torch.device("cpu")),
        world_size=1, global_step=2, callback_metrics={},
    )  # fmt: skip
    job = Job(folder, (), None, CliSelection(("data=moving_shapes",), ()))
    summary = summarize(job, trainer, make_module(), None, Course({}, 1.0, 0))
    (line,) = (line for line in summary.text().splitlines() if "checkpoints  " in line)
    assert line.split("  ")[-1] == said and summary.folder == Path("runs/a")
    assert ("generate.py" in summary.text()) == bool(files)
