"""How processes that load data take signals."""

import signal
from typing import Any

# Seconds that training has to end, which ends its loading processes, before they end themselves.
GRACE = 120


def outlive_sigterm(worker: int) -> None:
    """Go on loading after a first SIGTERM; a second one, or ``GRACE`` seconds, ends the worker.

    Schedulers send it to all processes of a job. Training is to finish its step and write a checkpoint, and takes the
    death of a worker for a fault.
    """

    def first(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GRACE)

    signal.signal(signal.SIGTERM, first)
