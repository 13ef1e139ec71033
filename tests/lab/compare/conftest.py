"""A sweep that was never trained: its runs in a store, their folders beside it."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow.entities import Metric, RunTag

from vidlab.data.video import encode
from vidlab.lab.tracking import store

SERIES = "N4-Euler-8-ClassifierFreeGuidance-3-abcd"
JUDGE = f"eval/{SERIES}/shapes_judge"
HOSTILE = "<img src=x onerror=alert(1)>"
# val/x0_mse at the end, by model and seed
LOSSES = {"2p1d": (0.30, 0.32, 0.31), "full3d": (0.20, 0.22, 0.215)}
KEYS = ("val_000", "val_001")


@dataclass(frozen=True)
class MadeSweep:
    """Where it is."""

    folder: Path
    uri: str
    parent: str
    children: tuple[str, ...]


@pytest.fixture(scope="session")
def sweep(migrated, tmp_path_factory) -> MadeSweep:
    """Two models over three seeds and a third model that failed; full3d is about 0.1 better in every seed."""
    root = tmp_path_factory.mktemp("sweep")
    shutil.copy(migrated, root / "mlflow.db")
    uri = f"sqlite:///{root}/mlflow.db"
    experiment = store.with_experiment_ready(uri, "vidlab")
    client = store.open_client(uri)
    folder = root / "runs" / "vidlab" / "2026-11-27_00-00-00-000000"
    tags = {"vidlab.kind": "sweep", "vidlab.run_folder": str(folder)}
    parent = client.create_run(experiment, tags=tags).info.run_id
    jobs, ids = [], []
    for number, (model, seed) in enumerate((m, s) for m in LOSSES for s in range(3)):
        run_id = make_run(client, experiment, uri, folder / str(number), model, seed, parent)
        ids.append(run_id)
        jobs.append({"number": number, "overrides": [f"model={model}", f"seed={seed}"], "state": "finished",
                     "folder": str(number), "run_id": run_id, "message": "", "process": None})  # fmt: skip
    jobs.append({"number": 6, "overrides": ["model=stiv", "seed=0"], "state": "failed", "folder": None,
                 "run_id": None, "message": HOSTILE, "process": None})  # fmt: skip
    record = {"id": folder.name, "experiment": "vidlab", "begun": 1,
              "parent_run_id": parent, "program": "train", "jobs": jobs,
              "arguments": ["model=2p1d,full3d,stiv", "seed=0,1,2"]}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(record))
    return MadeSweep(folder, uri, parent, tuple(ids))


def make_run(client, experiment, uri, folder, model, seed, parent) -> str:
    final = LOSSES[model][seed]
    tags = {
        "mlflow.parentRunId": parent, "vidlab.run_folder": str(folder), "vidlab.parameters": "1000000",
        "vidlab.command": f"python train.py model={model} seed={seed}", "vidlab.data_order": f"order{seed}",
        "vidlab.noise": f"noise{seed}" if model == "2p1d" or seed else "another",
    }  # fmt: skip
    run_id = client.create_run(experiment, run_name=f"{HOSTILE} {model}").info.run_id
    curves = {"val/x0_mse": (0.9, final), "val/loss": (0.5, 0.1), JUDGE: (0.1, 0.9 - final),
              "cost/flops": (1e9, 2e9 if model == "2p1d" else 4e9), "cost/tokens": (100.0, 200.0),
              "cost/seconds": (1.0, 2.0)}  # fmt: skip
    points = [
        Metric(key, value, step, step)
        for key, pair in curves.items()
        for step, value in zip((5, 10), pair, strict=True)
    ]
    client.log_batch(run_id, metrics=points, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_terminated(run_id)
    make_folder(folder, uri, run_id, [f"model={model}", f"seed={seed}"], final)
    return run_id


def make_folder(folder: Path, uri: str | None, run_id: str | None, overrides: list[str], final: float) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: 2p1d}}}\n")
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": run_id, "experiment": "vidlab"}))
    cost = {"steps": 10, "samples": 40, "tokens": 200, "flops": 3e9, "seconds": 2.0}
    summary = {"last": {"val/x0_mse": final}, "first": {"val/x0_mse": 0.9}, "steps": 10, "tracking_uri": uri,
               "cost": cost}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    videos = folder / "evaluation" / "videos"
    videos.mkdir(parents=True)
    for place, key in enumerate(KEYS):
        frames = np.full((4, 8, 8, 3), 60 * (place + 1), np.uint8)
        (videos / f"{key}.mp4").write_bytes(encode(frames, 8))
    with (folder / "evaluation" / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "series", "key", "caption", "metric", "score"))
        for step in (5, 10):
            for place, key in enumerate(KEYS):
                score = 0.9 - final + (0.1 if place else -0.1)
                writer.writerow((step, SERIES, key, f"{HOSTILE} clip {place}", "shapes_judge", score * step / 10))
