"""How long the comparison page takes with many runs in the store.

The runs are synthetic and lie in a store made for this: configurations of four seeds, each with the curves, the costs
and the tags that a training logs. Every configuration has videos of eight prompts. What is timed is the command as
typed, in a process of its own, imports included.

    python benchmarks/comparison_page.py [--runs 200] [--steps 1600] [--repeats 3]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from record import record
from vidlab.data.video import encode
from vidlab.lab.tracking import store

SERIES = "eval/N16-Euler-32-ClassifierFreeGuidance-3-6716"
SEEDS, PROMPTS = 4, 8


def make_store(root: Path, runs: int, steps: int) -> None:
    """A store, written past MLflow's client, which takes minutes for as many values, and the folders of the runs."""
    import sqlite3

    uri = f"sqlite:///{root}/mlflow.db"
    experiment = store.with_experiment_ready(uri, "vidlab")
    client = store.open_client(uri)
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (PROMPTS, 8, 8, 8, 3), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    made = []
    videos = [encode(one, 8) for one in frames]
    for number in range(runs):
        model, seed = f"m{number // SEEDS}", number % SEEDS
        folder = root / "runs" / "vidlab" / "sweep" / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"model={model}", f"seed={seed}"]))
        (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
        (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: m0}}}\n")
        tags = {"vidlab.run_folder": str(folder), "vidlab.parameters": "2880768"}
        run_id = client.create_run(experiment, run_name=model, tags=tags).info.run_id
        (folder / "run.json").write_text(f'{{"mlflow_run_id": "{run_id}", "experiment": "vidlab"}}')
        (folder / "summary.json").write_text(f'{{"last": {{}}, "steps": {steps}, "tracking_uri": "{uri}"}}')
        (folder / "evaluation" / "videos").mkdir(parents=True)
        for prompt, video in enumerate(videos):
            (folder / "evaluation" / "videos" / f"val_{prompt:03d}.mp4").write_bytes(video)
        made.append(run_id)
    with sqlite3.connect(root / "mlflow.db") as database:  # in one transaction
        insert = "insert into {} (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, 0)"
        for run_id in made:
            points = list(points_of(run_id, steps, random))
            database.executemany(insert.format("metrics"), points)
            database.executemany(insert.format("latest_metrics"), {point[0]: point for point in points}.values())
        database.execute("update runs set status = 'FINISHED'")


def points_of(run_id: str, steps: int, random: np.random.Generator):
    """Losses and costs of every step, validations and evaluations of some."""
    for step in range(1, steps + 1):
        yield "train/loss", 1 / step, step, run_id, step
        for kind, cost in {"flops": 3e10, "tokens": 2048.0, "samples": 16.0, "seconds": 0.2}.items():
            yield f"cost/{kind}", cost * step, step, run_id, step
    noise = random.normal(0, 0.01, 3)
    for step in range(0, steps + 1, 200):
        yield "val/loss", 0.4 / (1 + step / 100) + noise[0], step, run_id, step
        yield "val/x0_mse", 0.5 / (1 + step / 100) + noise[1], step, run_id, step
    for name in ("shapes_judge", "motion_smoothness", "temporal_flickering", "warping_error"):
        yield f"{SERIES}/{name}", 0.5 + noise[2], steps, run_id, steps


def main() -> None:
    """Make the store, time the command, record the best and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_store(root, given.runs, given.steps)
        command = [sys.executable, "-m", "vidlab.lab.compare", "last"]
        seconds, before = [], os.times()
        for _ in range(given.repeats):
            start = time.perf_counter()
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        after = os.times()
        cpu = (after.children_user + after.children_system - before.children_user - before.children_system) / len(
            seconds
        )
        page = root / "runs" / "vidlab" / "sweep" / "comparison" / "comparison.html"
        row = {
            "runs": given.runs, "steps": given.steps, "configurations": -(-given.runs // SEEDS),
            "repeats": given.repeats,
            "best_s": f"{min(seconds):.1f}", "worst_s": f"{max(seconds):.1f}", "cpu_s": f"{cpu:.1f}",
            "page_mb": f"{page.stat().st_size / 1e6:.1f}", "load": f"{os.getloadavg()[0]:.1f}",
        }  # fmt: skip
    print(row)
    print(record("comparison_page", [row]))


if __name__ == "__main__":
    main()
