"""``python -m vidlab.lab.compare <sweep or runs>``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vidlab.errors import UserError
from vidlab.lab.cli.safe_text import terminal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vidlab.lab.compare",
        description="Compare the runs of a sweep, or any runs: one page with tables, plots and videos side by side.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        help="'last' (the newest sweep), a sweep's id or folder, the MLflow run id of a sweep; or several run folders "
        "or MLflow run ids",
    )
    parser.add_argument("--out", type=Path, help="folder to write to; by default the sweep's, under comparison/")
    parser.add_argument("--uri", help="the MLflow store, such as sqlite:///mlflow.db; by default that of the runs")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        help="what decides, such as val/loss or shapes_judge; may be given several times",
    )
    parser.add_argument("--name", default="vidlab", help="the experiment in which 'last' looks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the comparison and print its verdict; returns the exit code."""
    found = _parser().parse_args(arguments)
    from vidlab.lab.compare.build import PAGE, TABLE, TEXT, build_comparison
    from vidlab.lab.compare.documents import REST

    try:
        folder = build_comparison(found.runs, found.out, found.uri, found.metric, found.name)
    except UserError as error:
        print(terminal(str(error)), file=sys.stderr)
        return 2
    text = (folder / TEXT).read_text().split(f"## {REST}")[0]
    print(terminal(text))
    print(terminal(f"  page         {folder / PAGE}\n  as text      {folder / TEXT}\n  as a table   {folder / TABLE}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
