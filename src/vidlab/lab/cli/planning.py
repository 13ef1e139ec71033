"""A command with ``plan=true`` writes into a folder that is gone when it ends."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vidlab.errors import UserError
from vidlab.lab.planner.table import table

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "null", "none", "")


def asks_for_plan(value: object) -> bool:
    """What ``plan=value`` says.

    Raises:
        UserError: neither yes nor no.
    """
    word = str(value).lower()
    if word not in YES + NO:
        raise UserError(f"plan={value}: it must be true or false.")
    return word in YES


@contextmanager
def nothing_left(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments, with those that let Hydra write nothing where a plan is asked for; then the table of a sweep."""
    given = [word.lstrip("+").partition("=") for word in arguments]
    if not any(key == "plan" and value.lower() in YES for key, _, value in given):
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
        if rows := table(Path(name)):  # of a sweep alone
            print(f"\n{rows}", file=sys.stdout, flush=True)
