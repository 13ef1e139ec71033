"""The files of a report."""

from collections.abc import Sequence
from pathlib import Path

from vidlab.command_line import command, setting
from vidlab.files import write_text
from vidlab.lab.cli.safe_text import markdown, terminal
from vidlab.lab.evaluation.comparison import compare, comparison_table
from vidlab.lab.evaluation.report import Evaluated, table, write_clip_csv, write_csv, write_sheets


def write_report(folder: Path, subjects: Sequence[Evaluated], head: Sequence[str] = ()) -> None:
    """Write and print the tables; write the contact sheets.

    Args:
        folder: where to.
        subjects: with different names.
        head: Markdown that comes first.
    """
    text = [*head, *(_section(subject) for subject in subjects)]
    if len(subjects) > 1:
        text.append(f"## Comparison\n\n{comparison_table(subjects, compare(subjects))}\n")
    print(terminal("\n".join(text)), flush=True)  # first: a full disk takes no result away
    write_text(folder / "report.md", "\n".join(text))
    write_csv(folder / "scores.csv", subjects)
    write_clip_csv(folder / "clips.csv", subjects)
    sheets = [write_sheets(folder / f"sheets-{place}", subject) for place, subject in enumerate(subjects)]
    print(f"  report       {folder}/report.md, scores.csv, clips.csv (one row per video)")
    for subject, written in zip(subjects, sheets, strict=True):
        if written:
            sheets_of = f"{next(iter(written.values())).parent} (best, median, worst of {subject.name})"
            print(terminal(f"  look at      {sheets_of}"))
    if len(subjects) == 1 and subjects[0].mlflow_run_id:
        print(f"  compare      {command('evaluate.py', setting('runs', [subjects[0].source, 'last']))}   # or another")


def _section(subject: Evaluated) -> str:
    return f"## {markdown(subject.name)}\n\n{markdown(subject.source)}\n\n{table(subject)}\n"
