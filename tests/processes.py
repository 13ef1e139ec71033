"""Several processes that run one function, as a launcher starts them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing

# A fork has imported everything already; a GPU's threads do not outlive one.
METHOD = "spawn" if torch.cuda.is_available() else "fork"


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in so many processes and wait for all of them."""
    multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method=METHOD)
