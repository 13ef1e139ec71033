"""The files of a report."""

from collections.abc import Sequence
from pathlib import Path

from vidlab.command_line import command, setting
from vidlab.files import terminal, write_text
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.evaluation.comparison.over_clips import compare, comparison_table
from vidlab.lab.evaluation.comparison.over_seeds import SeedComparison
from vidlab.lab.evaluation.comparison.seed_tables import EXPLAINED, front, write_comparison_csv
from vidlab.lab.evaluation.comparison.seed_tables import table as seed_table
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
    _write(folder, subjects, "\n".join(text))
    _print_files(folder, subjects, "report.md, scores.csv, clips.csv (one row per video)")
    if len(subjects) == 1 and subjects[0].mlflow_run_id:
        print(f"  compare      {command('evaluate.py', setting('runs', [subjects[0].source, 'last']))}   # or another")


def write_seed_report(folder: Path, comparison: SeedComparison) -> None:
    """Print what a comparison of runs says; write that with every metric, run and clip below it, and contact sheets.

    Args:
        folder: where to.
        comparison: of runs with different names.
    """
    first = f"# Comparison\n\n{front(comparison)}\n"
    print(terminal(first), flush=True)
    subjects = [run for group in comparison.groups for run in group.runs]
    text = [first, f"{EXPLAINED}\n"]
    if comparison.others:
        text.append(f"## Every other metric\n\n{seed_table(comparison.others, whole=True)}\n")
    text.append(f"## Checkpoint by checkpoint, over clips\n\n{comparison_table(subjects, compare(subjects))}\n")
    text += [_section(subject) for subject in subjects]
    _write(folder, subjects, "\n".join(text))
    write_comparison_csv(folder / "comparison.csv", comparison)
    _print_files(folder, subjects, "report.md (every metric and run), comparison.csv, scores.csv, clips.csv")


def _write(folder: Path, subjects: Sequence[Evaluated], text: str) -> None:
    write_text(folder / "report.md", text)
    write_csv(folder / "scores.csv", subjects)
    write_clip_csv(folder / "clips.csv", subjects)


def _print_files(folder: Path, subjects: Sequence[Evaluated], files: str) -> None:
    sheets = [write_sheets(folder / f"sheets-{place}", subject) for place, subject in enumerate(subjects)]
    print(f"  report       {folder}/{files}")
    for subject, written in zip(subjects, sheets, strict=True):
        if written:
            sheets_of = f"{next(iter(written.values())).parent} (best, median, worst of {subject.name})"
            print(terminal(f"  look at      {sheets_of}"))


def _section(subject: Evaluated) -> str:
    return f"## {markdown(subject.name)}\n\n{markdown(subject.source)}\n\n{table(subject)}\n"
