"""The end of a sweep: a table of its jobs, for the terminal, for Markdown and as data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.sweeps.record import SweepRecord

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Row:
    """A job: its number, its command line, its state, its last metrics (none without a summary), its folder."""

    number: int
    overrides: tuple[str, ...]
    state: str
    metrics: Mapping[str, float]
    folder: Path


@dataclass(frozen=True)
class Table:
    """Cells as text, a row for each job."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned columns."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join(line.rstrip() for line in aligned)

    def markdown(self) -> str:
        """A table in Markdown."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        escaped = [[cell if cell == "---" else markdown(cell) for cell in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def rows_of(folder: Path, sweep: SweepRecord) -> list[Row]:
    """The jobs of a sweep in its folder, by number."""
    found = []
    for job in sweep.jobs:
        place = folder / job.folder
        metrics = last_metrics(place) if job.state == "finished" else {}
        found.append(Row(job.number, job.overrides, job.state, metrics, place))
    return found


def last_metrics(folder: Path) -> dict[str, float]:
    """What a finished run shows of its last metrics; none without a summary, or a damaged one."""
    try:
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        return {name: float(summary["last"][name]) for name in summary["shown"] if name in summary["last"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def differing(jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job, the settings in which the jobs differ, in the order of their command lines."""
    words = [dict(word.partition("=")[::2] for word in job) for job in jobs]
    keys = dict.fromkeys(key for one in words for key in one)
    kept = [key for key in keys if len({one.get(key) for one in words}) > 1]
    return [{key: one[key] for key in kept if key in one} for one in words]


def table(rows: Sequence[Row], digits: int = 4) -> Table:
    """Job, the settings in which jobs differ, state where one is not finished, last metrics, folder."""
    words = differing([row.overrides for row in rows])
    keys = list(dict.fromkeys(key for one in words for key in one))
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    states = ["state"] if any(row.state != "finished" for row in rows) else []
    lines = []
    for row, one in zip(rows, words, strict=True):
        measured = [f"{row.metrics[name]:.{digits}f}" if name in row.metrics else "-" for name in names]
        state = [row.state] if states else []
        settings = (one.get(key, "-") for key in keys)
        lines.append((str(row.number), *settings, *state, *measured, _shortened(row.folder)))
    return Table(("job", *keys, *states, *names, "folder"), tuple(lines))


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for a JSON file, numbers in full precision."""
    words = differing([row.overrides for row in rows])
    return [
        {"job": row.number, "settings": one, "state": row.state, "metrics": dict(row.metrics)}
        for row, one in zip(rows, words, strict=True)
    ]


def _shortened(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
