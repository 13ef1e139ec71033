"""How a run that a signal has ended leaves: its processes together, with the command that goes on."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from vidlab.callbacks.last_checkpoint import LastCheckpoint
from vidlab.command_line import command, setting
from vidlab.lab.runs.summary import shortened

HOW = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Stopped by SIGTERM"}


def stopped(folder: Path, overrides: Sequence[str], trainer: Trainer | None, number: int, together: bool) -> NoReturn:
    """Say how to go on after a signal, and end with the exit code that shells give for it.

    Args:
        folder: of the run.
        overrides: of its command.
        trainer: None before it is built.
        number: of the signal: SIGINT or SIGTERM.
        together: whether all processes stopped together after a step, with a checkpoint.

    Raises:
        SystemExit: 130 or 143. After a step 0 on the ranks above 0, whose failure would make Lightning kill rank 0.
    """
    if trainer is not None and together:
        leave_process_group(trainer)
        if not trainer.is_global_zero:
            sys.exit(0)
    elif trainer is not None and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGTERM)
    if getattr(rank_zero_only, "rank", 0) == 0:
        step = trainer.global_step if trainer is not None else 0
        where = f"at step {step}" if step else "before the first step"
        print(
            f"{HOW[signal.Signals(number)]} {where}. {_hint(folder, overrides, trainer)}", file=sys.stderr, flush=True
        )
    sys.exit(128 + number)


def _hint(folder: Path, overrides: Sequence[str], trainer: Trainer | None) -> str:
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "There is no checkpoint yet."
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    saved = next((one.saved_step for one in callbacks if isinstance(one, LastCheckpoint)), -1)
    earlier = f" from step {saved}" if trainer is not None and 0 <= saved < trainer.global_step else ""
    kept = [word for word in overrides if not word.startswith("ckpt_path=")]
    return f"Go on{earlier} with: {command('train.py', *kept, setting('ckpt_path', shortened(folder)))}"


def leave_process_group(trainer: Trainer) -> None:
    """End a gloo process group in order: its threads abort now and then when the interpreter goes first."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        time.sleep(0.5)
        dist.destroy_process_group()
