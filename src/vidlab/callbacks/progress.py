"""The progress bar of training on a terminal; into a log file, a line at intervals instead."""

import logging
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from typing_extensions import override

from vidlab.callbacks.forecast import Forecast, Remaining, clock_time, duration, peak_memory, validations_left

log = logging.getLogger(__name__)

# Steps of a run after which it tells its end: by then its pace is known to some percent.
TOLD_AFTER = 10
ENDLESS = 2**62


class StepProgress(ProgressBar):
    """One bar over the whole run, counted in optimizer steps, with the latest losses, the speed and the expected end.

    Without a terminal it logs a line every ``line_seconds`` instead. Either way the end and the memory are told once,
    on a line of their own, within the first steps.

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
        self._forecast = Forecast()
        self._last_line = 0.0
        self._told = False
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on ranks above 0."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning on rank 0."""
        self._enabled = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_line, self._told = time.monotonic(), False
        self._forecast.start(trainer.global_step)
        console = Console()
        if not self._enabled or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"), console=console, refresh_per_second=4,
        )  # fmt: skip
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, numbers="")
        self._bar.start()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._enabled:
            return
        step = trainer.global_step
        self._forecast.stepped(step)
        self._tell_once(trainer)
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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are not taken now."""
        self._forecast.validation_started()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forecast.validation_ended()

    def _tell_once(self, trainer: Trainer) -> None:
        """The expected end and the memory, as soon as the pace is known."""
        forecast = self._forecast
        soon = forecast.steps >= TOLD_AFTER or (forecast.steps > 0 and forecast.elapsed > self.line_seconds)
        if self._told or not soon:
            return
        self._told = True
        left = self._left(trainer)
        if left is None or trainer.global_step >= trainer.max_steps > 0:
            return
        memory = peak_memory(trainer.strategy.root_device) / 1e9
        text = (
            f"{forecast.steps_per_second:.2f} steps/s: the run will end at about {clock_time(left)}, in "
            f"{duration(left)}; {memory:.1f} GB of memory so far"
        )
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            log.info(text)

    def _left(self, trainer: Trainer) -> float | None:
        remaining = _remaining(trainer)
        return None if remaining is None else self._forecast.seconds_left(remaining)

    def _numbers(self, trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        shown = [f"{name} {float(metrics[name]):.4f}" for name in ("train/loss", "val/loss") if name in metrics]
        pace, left = self._forecast.steps_per_second, self._left(trainer)
        if pace is not None:
            shown.append(f"{pace:.2f} steps/s")
        if left is not None:
            shown.append(f"ends {clock_time(left)}, in {duration(left)}")
        return "  ".join(shown)


def _remaining(trainer: Trainer) -> Remaining | None:
    """What the run has still to do; without ``max_steps`` a limit of time ends it, or nobody knows what."""
    timers: list[Any] = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    limits = [left for one in timers if (left := one.time_remaining()) is not None]
    at_most = min(limits) if limits else None
    step, last = trainer.global_step, trainer.max_steps
    if last < 0:
        return None if at_most is None else Remaining(ENDLESS, 0, at_most)
    interval = trainer.val_check_batch if sum(trainer.num_val_batches) else None
    validations = 0 if interval is None else validations_left(step, last, trainer.accumulate_grad_batches, interval)
    return Remaining(max(last - step, 0), validations, at_most)
