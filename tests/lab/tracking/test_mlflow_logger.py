import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from vidlab.errors import UserError
from vidlab.lab.tracking import metric_queue, store
from vidlab.lab.tracking import mlflow_logger as tracking
from vidlab.lab.tracking.metric_queue import MetricPoint, MetricQueue
from vidlab.lab.tracking.mlflow_logger import MLflowLogger, NoLogger


@pytest.fixture
def logger(migrated, tmp_path):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    (tmp_path / "run").mkdir()
    logger = make(tmp_path)
    yield logger
    logger.close("success")


def make(folder: Path, **settings) -> MLflowLogger:
    settings = {"experiment": "tests", "system_metrics": False, "folder": folder / "run"} | settings
    return MLflowLogger(f"sqlite:///{folder}/mlflow.db", **settings)


def history(logger: MLflowLogger, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in logger.experiment.get_metric_history(logger.run_id, key)]


def run_of(logger: MLflowLogger):
    return store.find_run(logger.uri, logger.run_id, "run")


def test_every_step_is_kept_and_the_store_is_asked_seldom(logger, monkeypatch):
    """A call to the store takes about 20 ms, which a step must not wait for."""
    logger.start()
    sent = []
    send = logger.experiment.log_batch
    monkeypatch.setattr(logger.experiment, "log_batch", lambda *a, **k: (sent.append(1), send(*a, **k)))
    for step in range(2500):
        logger.log_metrics({"train/loss": torch.tensor(step / 2), "fvd@16": 3}, step)
    logger.finalize("success")
    assert 5 <= len(sent) < 250
    assert history(logger, "train/loss") == [(step, step / 2) for step in range(2500)]
    assert history(logger, "fvd_16")[-1] == (2499, 3.0)


def test_values_that_are_not_numbers(logger):
    logger.log_metrics({"loss": math.nan, "norm": math.inf}, 1)
    logger.finalize("success")
    assert math.isnan(history(logger, "loss")[0][1]) and history(logger, "norm")[0][1] > 1e308


def test_finalize_does_not_end_the_run_and_close_does(logger):
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert run_of(logger).info.status == "RUNNING"
    for status, expected in [("success", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")]:
        logger.start()
        logger.close(status)
        assert run_of(logger).info.status == expected
    logger.start()
    logger.finalize("success")
    logger.finalize("failed")
    logger.close()
    assert run_of(logger).info.status == "FAILED"


def test_resuming_keeps_parameters_and_records_what_changed(logger, tmp_path):
    logger.log_hyperparams({"model": {"width": 64, "ratios": [1, 2]}, "note": "x" * 7000, "none": None})
    logger.log_config("width: 64\nseed: 0")
    run_id = logger.run_id
    logger.close("interrupted")
    resumed = make(tmp_path, run_id=run_id)
    resumed.start()
    assert resumed.run_id == run_id and run_of(resumed).info.status == "RUNNING"
    resumed.log_hyperparams({"model": {"width": 128, "depth": 2}, "note": "x" * 7000})
    resumed.log_config("width: 128\nseed: 0")
    resumed.close("success")
    found = run_of(resumed)
    assert found.data.params["model.width"] == "64" and found.data.params["model.ratios.1"] == "2"
    assert found.data.params["model.depth"] == "2" and found.data.params["none"] == "None"
    assert len(found.data.params["note"]) == 6000
    assert found.data.tags["resumed.model.width"] == "128"
    assert [tag for tag in found.data.tags if tag.startswith("resumed.")] == ["resumed.model.width"]
    folder = Path(found.info.artifact_uri) / "config"
    assert (folder / "config.yaml").read_text() == "width: 64\nseed: 0"
    assert (folder / "config-resume-2.yaml").read_text() == "width: 128\nseed: 0"
    diff = (folder / "config-resume-2.diff").read_text().splitlines()
    assert "-width: 64" in diff and "+width: 128" in diff


def test_more_than_a_hundred_parameters(logger):
    logger.log_hyperparams({f"key{i}": i for i in range(250)})
    assert len(run_of(logger).data.params) == 250


def test_media_and_files(logger, tmp_path):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    clip, table = tmp_path / "clip.mp4", tmp_path / "table.csv"
    clip.write_bytes(b"video")
    table.write_text("a,b")
    logger.log_image("previews/ema@9", image, step=100)
    logger.log_video("previews", clip, step=100)
    logger.log_artifact(table, "tables")
    logger.set_tags({"machine": "cpu"})
    found = run_of(logger)
    folder = Path(found.info.artifact_uri)
    assert folder.is_relative_to(tmp_path / "mlruns")
    assert (folder / "videos" / "previews" / "step-000100.mp4").read_bytes() == b"video"
    assert (folder / "tables" / "table.csv").read_text() == "a,b"
    (png,) = (folder / "images").glob("previews~ema_9+step+100+*.png")
    from PIL import Image

    assert (np.asarray(Image.open(png)) == image).all()
    assert found.data.tags["machine"] == "cpu"
    assert found.data.tags["vidlab.run_folder"] == str(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        logger.log_artifact(tmp_path / "none")


def test_a_store_that_breaks_never_stops_the_run(logger, tmp_path, monkeypatch):
    logger.start()

    def broken(*_args, **_kwargs):
        raise ConnectionError("the server is gone")

    for method in ("log_batch", "log_artifact", "set_terminated"):
        monkeypatch.setattr(logger.experiment, method, broken)
    with pytest.warns(RuntimeWarning, match="MLflow did not take the metrics.*the server is gone"):
        logger.log_metrics({"loss": 1.5}, 0)
        logger.finalize("success")
    logger.log_metrics({"loss": 0.5, "lr": 0.1}, 1)
    (tmp_path / "file").write_text("x")
    with pytest.warns(RuntimeWarning, match="MLflow did not store file"):
        logger.log_artifact(tmp_path / "file")
    with pytest.warns(match="3 metric values did not reach MLflow"):
        logger.close("success")
    lines = (tmp_path / "run" / "metrics-unsent.jsonl").read_text().splitlines()
    kept = [(m["key"], m["value"], m["step"]) for m in map(json.loads, lines)]
    assert kept == [("loss", 1.5, 0), ("loss", 0.5, 1), ("lr", 0.1, 1)]


def test_what_did_not_reach_the_store_is_sent_by_the_run_that_continues(logger, tmp_path, monkeypatch):
    logger.start()
    file = tmp_path / "run" / "metrics-unsent.jsonl"

    def broken(*_args, **_kwargs):
        raise ConnectionError("the server is gone")

    logger.log_metrics({"loss": 2.0, "lr": 0.1}, 0)
    logger.settle()  # before a checkpoint
    assert history(logger, "loss") == [(0, 2.0)] and not file.exists()
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="did not take the metrics"):
        patch.setattr(logger.experiment, "log_batch", broken)
        logger.log_metrics({"loss": 1.0}, 1)
        logger.settle()
    assert len(file.read_text().splitlines()) == 1
    file.write_text(file.read_text() + json.dumps(
        {"key": "loss", "value": 2.0, "step": 0, "timestamp": 5}
    ) + '\n{"key": "lo')  # fmt: skip
    with pytest.warns(RuntimeWarning, match="1 damaged lines"):  # the process was killed; another one continues
        resumed = make(tmp_path, run_id=logger.run_id)
        resumed.start()
    resumed.fill({"loss": 2.0, "lr": 0.1}, 0)
    resumed.fill({"lr": 0.2}, 1)
    resumed.settle()
    assert history(resumed, "loss") == [(0, 2.0), (1, 1.0)] and history(resumed, "lr") == [(0, 0.1), (1, 0.2)]
    assert not file.exists()
    resumed.close("success")


def test_a_full_disk_at_the_end_of_a_run_is_a_warning(logger, monkeypatch):
    logger.start()
    monkeypatch.setattr(logger.experiment, "log_batch", full)
    monkeypatch.setattr(metric_queue, "write_points", full)
    logger.log_metrics({"loss": 1.0}, 0)
    with pytest.warns(RuntimeWarning, match="1 metric values reached neither MLflow nor .*No space left on device"):
        logger.close("success")


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def points(*steps: int) -> list[MetricPoint]:
    return [MetricPoint("loss", float(step), step, 0) for step in steps]


def test_queue_sends_in_order_again_after_a_failure_and_warns_once():
    sent: list[int] = []
    failures = 2

    def send(batch):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("busy")
        assert len(batch) <= 1000
        sent.extend(point.step for point in batch)

    queue = MetricQueue(send, seconds=100, size=10_000)
    with pytest.warns(RuntimeWarning, match="busy") as caught:
        queue.add(points(*range(600)))
        queue.flush()
        queue.add(points(*range(600, 2100)))
        queue.flush()
    assert sent == [] and len(caught) == 1
    assert queue.close() == [] and sent == list(range(2100))


@pytest.mark.parametrize(("seconds", "size"), [(0.05, 1000), (100, 3)])
def test_queue_sends_on_time_and_on_size(seconds, size):
    arrived = threading.Event()
    queue = MetricQueue(lambda batch: arrived.set(), seconds, size)
    queue.add(points(1, 2, 3))
    assert arrived.wait(10)
    queue.close()


def test_a_crash_loses_nothing(commands, migrated, tmp_path):
    shutil.copy(migrated, tmp_path / "mlflow.db")
    code = """
from vidlab.lab.tracking.mlflow_logger import MLflowLogger
logger = MLflowLogger(experiment="crash", system_metrics=False, flush_seconds=1000)
for step in range(50):
    logger.log_metrics({"loss": step}, step)
print(logger.run_id, flush=True)
raise RuntimeError("crash")
"""
    done = commands.run_code(code, cwd=tmp_path)
    assert "RuntimeError: crash" in done.err
    client = store.open_client(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = done.out.strip()
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == list(range(50))
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_two_processes_create_one_database(tmp_path):
    code = "from vidlab.lab.tracking.store import with_experiment_ready as ready; print(ready('sqlite:///m.db', 'a'))"
    environment = os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[3])}
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1] != ""


def test_wrong_addresses_are_found_at_the_start(tmp_path):
    for uri in ("http://127.0.0.1:9", "postgresql://me:secret@127.0.0.1:9/db"):
        with pytest.raises(UserError, match=r"logger\.uri=.*does not answer") as caught:
            MLflowLogger(uri).start()
        assert "secret" not in str(caught.value) and "refused" in str(caught.value)
    with pytest.raises(UserError, match=r"logger\.uri='mlruns' is not a tracking store"):
        MLflowLogger("mlruns")
    (tmp_path / "notes.txt").write_text("this is not a database")
    with pytest.raises(UserError, match="is not an sqlite database"):
        MLflowLogger(f"sqlite:///{tmp_path}/notes.txt").start()
    with pytest.raises(UserError, match=r"logger\.uri=.*cannot write"):
        MLflowLogger(f"sqlite:///{tmp_path}/notes.txt/below/mlflow.db").start()


def test_unknown_run_and_deleted_experiment(logger, tmp_path):
    with pytest.raises(UserError, match=r"logger\.run_id=0{32}: not found"):
        make(tmp_path, run_id="0" * 32).start()
    logger.start()
    logger.experiment.delete_experiment(logger.experiment.get_experiment_by_name("tests").experiment_id)
    with pytest.raises(UserError, match=r"logger\.experiment='tests' was deleted"):
        make(tmp_path).start()


def test_relative_addresses_belong_to_the_folder_of_creation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = MLflowLogger()
    monkeypatch.chdir("/")
    assert logger.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_other_ranks_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = make(tmp_path)
    logger.start()
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"a": 1})
    logger.log_config("a: 1")
    logger.set_tags({"a": 1})
    logger.log_image("a", np.zeros((2, 2, 3), np.uint8), 0)
    logger.finalize("success")
    logger.close("success")
    assert logger.run_id is None and list(tmp_path.iterdir()) == []


def test_system_metrics(migrated, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    shutil.copy(migrated, tmp_path / "mlflow.db")
    logger = make(tmp_path, system_metrics=True)
    logger.start()
    deadline = time.monotonic() + 20
    while "system/cpu_utilization_percentage" not in run_of(logger).data.metrics:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    logger.close("success")
    assert run_of(logger).data.metrics["system/system_memory_usage_megabytes"] > 0


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        self.log("train/loss", self.weight.detach().sum() + index)
        return (self.weight - batch[0].mean()).square().sum()

    def validation_step(self, batch, index):
        self.log("val/loss", 2.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_under_the_lightning_trainer_validate_then_fit_is_one_run(logger, tmp_path):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(6, 1)))
    trainer = Trainer(
        max_epochs=1,
        logger=logger,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.validate(Line(), loader, verbose=False)
    run_id = logger.run_id
    trainer.fit(Line(), loader)
    assert logger.run_id == run_id and run_of(logger).info.status == "RUNNING"
    assert history(logger, "train/loss") == [(step, float(step)) for step in range(6)]
    logger.close("success")
    assert run_of(logger).info.status == "FINISHED"


def test_no_logger_offers_the_same_and_works_in_a_trainer(tmp_path):
    public = {name for name in vars(MLflowLogger) if not name.startswith("_")} - {"experiment"}
    assert public - {"finalize"} <= set(vars(NoLogger))
    logger = NoLogger(tmp_path)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 1)))
    trainer = Trainer(
        max_epochs=1, logger=logger, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(Line(), loader)
    assert trainer.checkpoint_callback.best_model_path.startswith(str(tmp_path))
