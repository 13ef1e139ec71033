"""Makes the comparison of a sweep or of some runs, and keeps it with the sweep's MLflow run."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from vidlab.files import write_text
from vidlab.lab.compare.comparison import Comparison, compare
from vidlab.lab.compare.documents import write_markdown, write_table
from vidlab.lab.compare.media import make_gallery, write_sheet
from vidlab.lab.compare.page.html import write_page
from vidlab.lab.compare.page.plots import Plot, all_plots
from vidlab.lab.compare.reading.selection import Selection, select_runs
from vidlab.lab.runs.run_folder import RUNS
from vidlab.lab.tracking.store import absolute_uri, open_client, short

PAGE, TEXT, TABLE, SHEET = "comparison.html", "comparison.md", "comparison.csv", "contact_sheet.png"
PLOTS, ARTIFACTS = "plots", Path("comparison")


def build_comparison(
    source: str | Path | Sequence[str | Path],
    out: Path | None = None,
    uri: str | None = None,
    metrics: Sequence[str] = (),
    name: str = "vidlab",
    runs_root: Path = RUNS,
) -> Path:
    """Write the comparison, and store it with the sweep's MLflow run where there is one.

    Args:
        source: a sweep (``last``, its id, folder or MLflow run), or several runs.
        out: the folder to write to; by default ``comparison`` in the sweep's folder, for single runs
            ``comparisons/<time>``.
        uri: the MLflow store; by default the one that the run folders name.
        metrics: by which configurations are compared; chosen where none is named.
        name: the experiment in which ``last`` looks.
        runs_root: where run folders are kept.

    Returns:
        The folder, with ``comparison.html``, ``comparison.md``, ``comparison.csv``, and where there are videos
        ``contact_sheet.png``.

    Raises:
        UserError: there are no such runs, none has finished, or none was measured by what was asked for.
    """
    words = [str(source)] if isinstance(source, str | Path) else [str(one) for one in source]
    selection = select_runs(words, uri, name, runs_root)
    comparison = compare(selection, metrics)
    folder = out or (selection.folder / "comparison" if selection.folder else _new_folder())
    log_to_parent(folder, selection, write_files(folder, comparison))
    return folder


def write_files(folder: Path, comparison: Comparison) -> list[Path]:
    """Write everything into a folder, which is made if it is not there; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    gallery, plots = make_gallery(comparison.rows), all_plots(comparison)
    sheet = write_sheet(folder / SHEET, comparison.rows, gallery)
    return [
        *([sheet] if sheet else []),
        write_markdown(folder / TEXT, comparison),
        write_table(folder / TABLE, comparison),
        *_write_plots(folder / PLOTS, plots),
        write_page(folder / PAGE, comparison, plots, gallery, sheet),
    ]


def _write_plots(folder: Path, plots: Sequence[Plot]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    written = []
    for plot in plots:
        label = "-".join(part.replace("/", "-") for part in (plot.section, plot.title, plot.axis) if part)
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in label)
        written.append(write_text(folder / f"{name}.svg", plot.svg))
    return written


def _new_folder() -> Path:
    return Path("comparisons") / time.strftime("%Y-%m-%d_%H-%M-%S")


def log_to_parent(folder: Path, selection: Selection, written: Sequence[Path] = ()) -> bool:
    """Store what was written as files of the sweep's MLflow run, under ``comparison``.

    A store that fails costs a warning.

    Args:
        folder: of the comparison, in which there may be other files too.
        selection: the runs.
        written: the files of the comparison.

    Returns:
        Whether they are there now; there is nothing to do for runs without a parent.
    """
    if selection.uri is None or selection.parent_run_id is None:
        return False
    try:
        client = open_client(absolute_uri(selection.uri))
        client.get_run(selection.parent_run_id)
        for path in written:
            below = (ARTIFACTS / path.relative_to(folder).parent).as_posix()
            client.log_artifact(selection.parent_run_id, str(path), below)
    except Exception as error:
        warnings.warn(f"MLflow did not store the comparison ({short(error)}); it is in {folder}", stacklevel=2)
        return False
    return True
