"""What the MLflow store of a working folder says, read from the database itself."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from .command import Lab

Curve = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Tracked:
    """One run: ``curve`` maps (metric, step) to the last value stored, in full precision."""

    run_id: str
    status: str
    curve: Curve

    def losses(self, after: int = -1) -> Curve:
        """Training and validation losses of the steps greater than ``after``."""
        names = ("train/loss", "val/loss", "val/x0_mse")
        return {place: value for place, value in self.curve.items() if place[0] in names and place[1] > after}


def tracked(lab: Lab) -> list[Tracked]:
    """Every run of the folder's store, oldest first."""
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database:
        runs = database.execute("select run_uuid, status from runs order by start_time").fetchall()
        found = []
        for run_id, status in runs:
            rows = database.execute(
                "select key, step, value from metrics where run_uuid = ? order by timestamp", (run_id,)
            ).fetchall()
            found.append(Tracked(run_id, status, {(key, step): value for key, step, value in rows}))
    return found


def only(lab: Lab) -> Tracked:
    """The folder's one run."""
    (run,) = tracked(lab)
    return run


def weights(path: Path) -> dict[str, object]:
    """Everything of a checkpoint that decides how training goes on."""
    import torch

    content = torch.load(path, weights_only=True)
    names = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step")
    return {name: content[name] for name in names}


def equal(a: object, b: object) -> bool:
    """Whether two nests of tensors and plain values are the same, to the last bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
