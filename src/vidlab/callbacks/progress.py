"""Progress on the terminal: a bar for people, a line now and then for log files."""

import logging
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class StepProgress(ProgressBar):
    """One bar over the whole run, counted in optimiser steps, with the latest losses and the speed.

    Without a terminal it logs a line every ``line_seconds`` instead.

    Args:
        line_seconds: seconds between two lines without a terminal.
        refresh_steps: the bar's numbers are read every so many steps; reading waits for the device.
    """

    def __init__(self, line_seconds: float = 20.0, refresh_steps: int = 5) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        self.refresh_steps = refresh_steps
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = 0.0
        self._first_step = 0
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on ranks above 0."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning on rank 0."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        console = Console()
        if not self._enabled or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"), console=console, refresh_per_second=4,
        )  # fmt: skip
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, numbers="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance."""
        if not self._enabled:
            return
        step = trainer.global_step
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)
            if step % self.refresh_steps == 0:
                self._bar.update(self._task, numbers=self._numbers(trainer))
        elif time.monotonic() - self._last_line > self.line_seconds:
            self._last_line = time.monotonic()
            log.info("step %d/%s  %s", step, trainer.max_steps, self._numbers(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _numbers(self, trainer: Trainer) -> str:
        steps = trainer.global_step - self._first_step
        speed = steps / max(time.monotonic() - self._started, 1e-9)
        metrics = trainer.callback_metrics
        shown = [f"{name} {float(metrics[name]):.4f}" for name in ("train/loss", "val/loss") if name in metrics]
        return "  ".join([*shown, f"{speed:.2f} steps/s"])
