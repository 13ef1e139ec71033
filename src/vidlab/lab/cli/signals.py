"""SIGTERM outside of training steps, and moments in which no signal may come between.

In training ``LastCheckpoint`` takes SIGTERM, finishes the step and saves. Before its first step, in setup, the
preparation of data and the first validation, and after its last, there is nothing to save: the program is ended at
once, in an order in which it can mark its run as stopped.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Terminated(SIGTERMException):
    """SIGTERM came outside of training steps."""


def _raise(*_: Any) -> None:
    raise Terminated


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise ``Terminated`` where SIGTERM finds the program, instead of ending it as if it had never been.

    Raises:
        SystemExit: 143, for a ``Terminated`` that comes out of the block.
    """
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except Terminated:
        print("Stopped by SIGTERM before the first step.", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held() -> Iterator[None]:
    """A first SIGINT or SIGTERM waits for the end of the block; a second of its kind does not wait."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not _in_main_thread() or None in handlers.values():
        yield
        return
    waiting: list[int] = []

    def wait(number: int, _: Any) -> None:
        waiting.append(number)
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for sent in waiting:
            os.kill(os.getpid(), sent)


class EndOnSigterm(Callback):
    """Ends the validation before the first step at once; Lightning's own handler would let it finish and go on.

    In several processes that handler also talks to the others from within the signal, whatever they are at.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal back from Lightning, which restores what was there before it."""
        if trainer.state.fn == TrainerFn.VALIDATING and _in_main_thread():
            signal.signal(signal.SIGTERM, _raise)
