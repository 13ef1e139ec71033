"""Several processes that run one function, as a launcher starts them."""

from collections.abc import Callable
from typing import Any

from torch import multiprocessing

# Forked from a server that has imported the heavy packages and has one thread: a fork of the tests themselves could
# inherit a lock that one of their threads holds.
METHOD = "forkserver"
multiprocessing.set_forkserver_preload(["torch", "lightning"])


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in so many processes and wait for all of them."""
    multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method=METHOD)
