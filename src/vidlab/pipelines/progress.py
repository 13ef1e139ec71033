"""The progress bar that is shown while videos are made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, total: float, shown: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar that is told of each share of the whole; not drawn where ``shown`` is False."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(transient=True, disable=not shown) as progress:
        task = progress.add_task(escape(title), total=total)
        yield lambda amount: progress.advance(task, amount)
