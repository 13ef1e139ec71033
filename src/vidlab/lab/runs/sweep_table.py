"""The end of a sweep: a table of its jobs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from vidlab.lab.cli.safe_text import terminal
from vidlab.lab.cli.unused_folder import remove_unused

SUMMARY = "summary.json"


class SweepTable(Callback):
    """Prints the table when all jobs of a sweep have ended well; of others ``entry`` prints it."""

    @override
    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print_table(Path(config.hydra.sweep.dir))


@dataclass(frozen=True)
class Row:
    """A job: its number, its command line, its last metrics (none without a summary), its folder."""

    job: str
    overrides: tuple[str, ...]
    metrics: dict[str, float]
    folder: Path


def print_table(folder: Path) -> None:
    """Print the table of a sweep's folder; one in which no job has left anything is removed."""
    rows = rows_of(folder)
    if rows:
        print(terminal(table(rows)), flush=True)
    else:
        remove_unused(folder)


def rows_of(folder: Path) -> list[Row]:
    """The jobs of a sweep that have left a folder, by number."""
    found = [path.parents[1] for path in folder.glob("*/.hydra/overrides.yaml")]
    return [_row(job) for job in sorted(found, key=lambda job: (len(job.name), job.name))]


def _row(folder: Path) -> Row:
    overrides: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        metrics = {name: float(summary["last"][name]) for name in summary["shown"] if name in summary["last"]}
    except (OSError, ValueError, KeyError, TypeError):  # the job failed, or was stopped
        metrics = {}
    return Row(folder.name, tuple(map(str, overrides)), metrics, folder)


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: job, the settings in which jobs differ, last metrics, folder."""
    words = [dict(word.partition("=")[::2] for word in row.overrides) for row in rows]
    keys = [key for key in dict.fromkeys(key for one in words for key in one)
            if len({one.get(key) for one in words}) > 1]  # fmt: skip
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    lines = [["job", *keys, *names, "folder"]]
    for row, one in zip(rows, words, strict=True):
        measured = [f"{row.metrics[name]:.4f}" if name in row.metrics else "-" for name in names]
        lines.append([row.job, *(one.get(key, "-") for key in keys), *measured, _shortened(row.folder)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(["", f"{len(rows)} jobs:", *(f"  {line.rstrip()}" for line in aligned), ""])


def _shortened(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
