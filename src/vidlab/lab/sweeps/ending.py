"""What a sweep leaves and says at its end: the table, where everything is, and what to type next."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vidlab.command_line import command
from vidlab.errors import UserError
from vidlab.files import terminal, write_json, write_text
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.sweeps.record import SweepRecord, counted
from vidlab.lab.sweeps.table import Row, as_data, rows_of, table

if TYPE_CHECKING:
    from vidlab.lab.sweeps.parent import ParentRun

SHOWN = 5


def report(folder: Path, sweep: SweepRecord, parent: "ParentRun | None", interrupted: bool) -> None:
    """Write the table as ``table.md`` and ``table.json``, keep it with the sweep's MLflow run, and print it.

    The comparison comes last: it takes a while, and whatever ends it, the sweep's run has ended before.
    """
    rows = rows_of(folder, sweep)
    page = markdown_page(sweep, rows)
    write_text(folder / "table.md", page)
    write_json(folder / "table.json", as_data(rows))
    print(terminal(in_text(folder, sweep, rows)), flush=True)
    if parent is not None:
        parent.show(sweep)
        parent.keep(sweep, page, as_data(rows))
        print(f"  {_browser(parent)}", flush=True)
        parent.close(outcome(sweep, interrupted))
    if outcome(sweep, interrupted) != "finished":
        print(f"\nSweep {sweep.id}: {counted(sweep)}. Go on with: {go_on(folder, sweep)}", file=sys.stderr, flush=True)
    if not interrupted:
        compare_jobs(folder, sweep)
    if any(job.state == "finished" for job in sweep.jobs):
        print(f"Next:\n  {command('-m vidlab.lab.compare', reference_of(folder, sweep))}", flush=True)


def compare_jobs(folder: Path, sweep: SweepRecord) -> None:
    """Write the comparison of the jobs that finished, where there are several, and say where it is."""
    if sweep.program != "train" or sum(job.state == "finished" for job in sweep.jobs) < 2:
        return
    from vidlab.lab.compare.build import PAGE, build_comparison

    try:
        page = build_comparison(folder) / PAGE
    except UserError as error:
        print(terminal(f"  no comparison: {error}"), flush=True)
    except Exception as error:  # what was trained is whole, whatever becomes of its page
        warnings.warn(f"the comparison was not written ({type(error).__name__}: {error})", stacklevel=2)
    else:
        print(terminal(f"  comparison   {page}"), flush=True)


def outcome(sweep: SweepRecord, interrupted: bool) -> str:
    """How a sweep ended: ``finished``, ``failed`` where a job did, or ``interrupted``."""
    states = {job.state for job in sweep.jobs}
    if interrupted or states & {"interrupted", "planned", "running"}:
        return "interrupted"
    return "failed" if "failed" in states else "finished"


def go_on(folder: Path, sweep: SweepRecord) -> str:
    """The command that runs what is missing."""
    return command(f"{sweep.program}.py", f"resume_sweep={reference_of(folder, sweep)}")


def reference_of(folder: Path, sweep: SweepRecord) -> str:
    """The sweep's id where that finds it from the current folder, otherwise its folder."""
    found = list(Path("runs").glob(f"*/{sweep.id}"))
    return sweep.id if [one.resolve() for one in found] == [folder.resolve()] else str(folder)


def in_text(folder: Path, sweep: SweepRecord, rows: Sequence[Row]) -> str:
    """The table, the failures and where things are."""
    lines = ["", f"{len(rows)} jobs:", *(f"  {line}" for line in table(rows).text().splitlines()), ""]
    failed = [job for job in sweep.jobs if job.state == "failed"]
    lines += [f"  job {job.number} failed: {job.message}" for job in failed[:SHOWN]]
    lines += [f"  and {len(failed) - SHOWN} more failed; {folder}/sweep.json says why"] if len(failed) > SHOWN else []
    lines += [f"  table        {folder}/table.md and .json", f"  all jobs     {folder}/sweep.json"]
    return "\n".join(lines)


def markdown_page(sweep: SweepRecord, rows: Sequence[Row]) -> str:
    """The table with its command."""
    line = command(f"{sweep.program}.py", "-m", *sweep.arguments)
    failed = "".join(f"- job {job.number} failed: {markdown(job.message)}\n" for job in sweep.jobs if job.message)
    return f"# Sweep {sweep.id}\n\n    {line}\n\n{counted(sweep)}\n\n{table(rows).markdown()}\n{failed}"


def _browser(parent: "ParentRun") -> str:
    if parent.uri.startswith(("http://", "https://")):
        return f"open {parent.page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(parent.uri)}\n    and open {parent.page}"
