"""Several processes that run one function, as a launcher starts them."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.command import Commands

TESTS = Path(__file__).parent
RANKS = """
import pickle
import sys
from pathlib import Path

from torch import multiprocessing

function, arguments, ranks = pickle.loads(Path(sys.argv[1]).read_bytes())
multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="fork")
"""


def run_ranks(
    commands: "Commands", folder: Path, function: Callable[..., None], arguments: tuple[Any, ...], ranks: int = 2
) -> None:
    """Call ``function(rank, *arguments)`` in so many processes and wait for all of them.

    They are forked from one that has imported the heavy packages and has one thread: a fork of the tests themselves
    could inherit a lock that one of their threads holds. Their function is kept in ``folder``.
    """
    call = folder / "call.pickle"
    call.write_bytes(pickle.dumps((function, arguments, ranks)))
    places = [str(TESTS.parent / "src"), *(place for place in sys.path if TESTS in [Path(place), *Path(place).parents])]
    done = commands.run_code(RANKS, str(call), cwd=folder, env={"PYTHONPATH": os.pathsep.join(places)})
    assert done.code == 0, done.err
