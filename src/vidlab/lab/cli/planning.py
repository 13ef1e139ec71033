"""A command with ``plan=true`` writes into a folder that is gone when it ends."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vidlab.lab.planner.table import table

ASKS = ("plan=true", "plan=True")


@contextmanager
def nothing_left(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments, with those that let Hydra write nothing where a plan is asked for; then the table of a sweep."""
    if not any(word in ASKS for word in arguments):
        yield list(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="vidlab-plan-") as name:
        quiet = [
            "hydra/job_logging=stdout",
            "hydra.output_subdir=null",
            "hydra/sweeper=basic",
            f"hydra.run.dir={name}/0",
        ]
        yield [*arguments, *quiet, f"hydra.sweep.dir={name}"]
        _print_table(Path(name), sweep=arguments[:1] in (["-m"], ["--multirun"]))


def _print_table(folder: Path, sweep: bool) -> None:
    if not sweep:
        return
    print(f"\n{table(folder)}", file=sys.stdout, flush=True)
