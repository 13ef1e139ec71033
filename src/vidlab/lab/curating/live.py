"""What a curation shows while it runs: a bar, and the funnel of what is done."""

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidlab.curation.output.funnel import HEADER, Funnel


class LiveFunnel:
    """A bar of partitions with the funnel below it; where there is no terminal, nothing. Used as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[sources]}"), console=self.console)
        self._task: Any = None
        self._sources = 0
        self._live = Live(self._bar, console=self.console, transient=True, refresh_per_second=4)

    def __enter__(self) -> "LiveFunnel":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def begin(self, title: str, total: int, done: int) -> None:
        """As of ``Progress``."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total, completed=done, sources="")
        self._sources = 0

    def source(self) -> None:
        """As of ``Progress``."""
        self._sources += 1
        if self._sources % 8 == 0:
            self._bar.update(self._task, sources=f"{self._sources} videos x stages")

    def partition(self, funnel: Funnel) -> None:
        """As of ``Progress``."""
        self._bar.advance(self._task)
        if self.console.is_terminal:
            self._live.update(Group(self._bar, funnel_table(funnel)))


def funnel_table(funnel: Funnel) -> Table:
    """The funnel as a terminal shows it."""
    table = Table(*HEADER)
    for row in funnel.rows():
        table.add_row(*row.cells)
    return table
