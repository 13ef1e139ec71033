"""``last.ckpt``: the newest state, at intervals, at the end, and when the process is asked to stop."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from vidlab.callbacks.ema import EMA
from vidlab.errors import UserError
from vidlab.training.finiteness import all_finite, refuse_if_diverged

ASKED = b"\nInterrupted: training ends after this step, with a checkpoint. Ctrl-C again ends it at once, without.\n"


class StopRequestedError(SIGTERMException):
    """Training ended after a step, with a checkpoint, because a signal had asked for it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class LastCheckpoint(Checkpoint):
    """Overwrites ``<dirpath>/last.ckpt`` every ``every_n_steps`` optimizer steps, after the last, and when stopped.

    At the end a validation since the last save is followed by another save: it may change what is saved (the scale of
    an autoencoder's latents is measured there). In mid-training it is not: what is measured then is one validation old
    in the file, and measured anew by the next.

    SIGTERM or Ctrl-C (SIGINT) to any process of a run ends training after the optimizer step in progress (a validation
    is finished first), on all processes after the same one. A second Ctrl-C does not wait. Lightning's own handlers are
    replaced: they talk to the other processes from within the signal, in the middle of whatever they exchange, and
    write no checkpoint.

    No checkpoint, whoever writes it, is written of weights that are not finite: it would take the place of a good one.

    Being a Checkpoint, it runs after every other callback of the step, so their state is that of the step.

    Args:
        dirpath: folder of checkpoints.
        every_n_steps: interval in optimizer steps.

    Raises:
        StopRequestedError: in training, once the checkpoint is on disk.
        UserError: trained weights, or their average, are infinite or not a number when a checkpoint is to be written.
    """

    def __init__(self, dirpath: str, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise UserError(f"callbacks.checkpoint.every_n_steps={every_n_steps} must be at least 1.")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = self._seen_step = -1
        self._asked: int | None = None
        self._stop = self._newest = self._outdated = False
        self._interrupt: Any = None

    @property
    def saved_step(self) -> int:
        """The optimizer step of the file; -1 before training."""
        return self._saved_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step a run resumes from is on disk; saving again while gradients accumulate would lose them."""
        self._saved_step = self._seen_step = trainer.global_step
        self._asked, self._stop, self._newest, self._outdated = None, False, False, False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)  # Lightning puts the former handler back at its end
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of jobs in the background of a script
                self._interrupt = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._asked == signal.SIGINT:
                raise KeyboardInterrupt
            if getattr(rank_zero_only, "rank", 0) == 0:
                os.write(2, ASKED)  # print may be what the signal has come into
        self._asked = number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop here rather than at the end of the batch before, whose losses are logged only after its callbacks."""
        if self._stop:
            raise StopRequestedError(self._asked or signal.SIGTERM)
        self._newest = self._outdated = False
        # the x axis of logs: Lightning restores it one too high from a checkpoint written after the last step
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save at the interval, once per optimizer step, and when asked to stop."""
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self._stop = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        if self._stop:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the file is older than this; one that is batches behind is left, as gradients may be waiting."""
        self._outdated = self._newest

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._outdated:
            self._saved_step = -1
        self._save(trainer)
        self._give_back()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._interrupt is not None:
            signal.signal(signal.SIGINT, self._interrupt)
            self._interrupt = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite; called before any checkpoint is written, ``best.ckpt`` too."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        weights = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        averages = [value for one in callbacks if isinstance(one, EMA) for value in one.average.values()]
        broken = [] if all_finite([*weights, *averages]) else ["a weight is not finite"]
        refuse_if_diverged(trainer, broken)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step in (0, self._saved_step) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_step, self._newest = trainer.global_step, True
        trainer.save_checkpoint(self.path, weights_only=False)  # the state of training too
