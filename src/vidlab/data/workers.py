"""DataLoader worker processes: how they take signals, and what is said when one has gone."""

import multiprocessing
import re
import signal
from multiprocessing.context import BaseContext
from typing import Any

# Seconds that training has to end, which ends its loading processes, before they end themselves.
GRACE = 120


def outlive_signals(worker: int) -> None:
    """Go on loading after a first SIGTERM and after Ctrl-C; a second SIGTERM, or ``GRACE`` seconds, ends the worker.

    Schedulers send the one to all processes of a job, terminals the other. Training is to finish its step and write a
    checkpoint, and takes the death of a worker for a fault; a worker also ends with the process that it loads for.
    """

    def first(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GRACE)

    signal.signal(signal.SIGTERM, first)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def process_context() -> BaseContext:
    """How this process starts others: the platform's way, or what was set by ``multiprocessing.set_start_method``.

    A process of loky, in which ``hydra/launcher=joblib`` runs jobs, has loky's way for its default, and that starts
    no processes but loky's own: those of torch and of ``concurrent.futures`` end in an AttributeError.
    """
    usual, chosen = multiprocessing.get_all_start_methods(), multiprocessing.get_start_method()
    return multiprocessing.get_context(chosen if chosen in usual else usual[0])


def death_of_a_worker(error: BaseException) -> str | None:
    """The message for an error that means that a process has gone; None for any other.

    torch notices it by a signal, wherever training stands, or in the batch it waits for; or the connection breaks over
    which a tensor was to come.
    """
    broken = isinstance(error, ConnectionError | EOFError)
    if not broken and not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")):
        return None
    text = " ".join(str(error).split())
    found = re.match(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", text)
    what = (
        f"Process {found[1]}, which loads data, {found[2].rstrip('. ')}" if found else "A process that loads data ended"
    )
    return (
        f"{what}. Most often memory ran out: lower data.num_workers or data.cache_decoded_mb. Nothing that was "
        "checkpointed is lost: resume with ckpt_path=last."
    )
