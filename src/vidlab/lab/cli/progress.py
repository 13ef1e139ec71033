"""A progress bar whose title may hold untrusted text."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from vidlab.files import terminal
from vidlab.pipelines import progress


def bar(title: str, total: int) -> AbstractContextManager[Callable[[float], None]]:
    """A bar that is told of each share of the whole."""
    return progress.bar(terminal(title), total)
