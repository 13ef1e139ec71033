"""``python -m vidlab.lab.compare <sweep or runs>``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vidlab.command_line import exit_code
from vidlab.files import terminal


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


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the comparison and print its verdict."""
    found = _parser().parse_args(arguments)
    from vidlab.lab.compare.build import PAGE, TABLE, TEXT, build_comparison
    from vidlab.lab.compare.documents import REST

    folder = build_comparison(found.runs, found.out, found.uri, found.metric, found.name)
    text = (folder / TEXT).read_text("utf-8").split(f"## {REST}")[0]
    print(terminal(text))
    print(terminal(f"  page         {folder / PAGE}\n  as text      {folder / TEXT}\n  as a table   {folder / TABLE}"))


if __name__ == "__main__":
    sys.exit(main())
