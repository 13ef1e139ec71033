"""A bar for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vidlab.lab.cli.safe_text import terminal


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(escape(terminal(title)), total=total)
        yield lambda amount: progress.advance(task, amount)
