"""Training with compile=true gives the weights of training without: with recomputed activations, clipping, EMA, DDP."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.command import Commands
from parallel.test_several_processes import meet, part
from parallel.trained import Training, launched, train
from processes import run_ranks


def worker(rank: int, ranks: int, folder: str) -> None:
    """Two steps saved, then two more of a new module, once as written and once compiled."""
    place, keys = Path(folder), "ab"[rank] if ranks == 2 else "ab"
    meet(rank, ranks, place)
    if ranks == 2:
        launched(rank, ranks)
    written = Training("written", "ddp" if ranks == 2 else "auto", ranks, recomputed=ranks == 1)
    for training in (written, replace(written, name="compiled", compiled=True)):
        train(training, keys, 2, place, save=f"{training.name}.ckpt")
        weights = train(training, keys, 4, place, resume=place / f"{training.name}.ckpt")
        if rank == 0:
            torch.save(weights, place / f"{training.name}.pt")
    part()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_blocks_train_as_written_ones(ranks: int, commands: Commands, tmp_path: Path) -> None:
    run_ranks(commands, tmp_path, worker, (ranks, str(tmp_path)), ranks)
    written, compiled = (torch.load(tmp_path / f"{name}.pt") for name in ("written", "compiled"))
    assert written.keys() == compiled.keys()
    averaged = [name for name in written if f"ema.{name}" in written]
    moved = max((written[name] - written[f"ema.{name}"]).abs().max().item() for name in averaged)
    assert max((compiled[name] - value).abs().max().item() for name, value in written.items()) < 1e-3 * moved
