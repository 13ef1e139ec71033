"""Whether a table of ``experiments/`` came out as published.

    python -m vidlab.lab.claims.verdicts TABLE [SWEEP ...] [--write]

TABLE is a folder with ``published.csv``, a SWEEP the folder of ``python train.py -m experiment=...``, one or several.
Every row is compared with the baseline row over common seeds. ``--write`` puts the result into the table's README.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml  # type: ignore[import-untyped]

from vidlab.errors import DataError, UserError
from vidlab.metrics.statistics.over_seeds import mean_over_seeds
from vidlab.metrics.statistics.significance import SeedTest, seed_test

Word = Literal[
    "baseline", "not measured", "no claim", "one seed", "not resolvable at this size", "same sign", "opposite"
]  # fmt: skip
Scores = Mapping[str, Mapping[int, float]]
PUBLISHED, SUMMARY = "published.csv", "summary.json"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEADER = "| row | published | ours | over the baseline, 95 % interval | verdict |\n|---|---|---|---|---|"
SIGNS = {"higher": 1, "lower": -1}
EXPECTED = {"better": 1, "worse": -1, "": 0}


@dataclass(frozen=True)
class PublishedRow:
    """A row of ``published.csv``.

    Args:
        row: name of the choice ``row/PAPER/TABLE``.
        baseline: whether the others are compared with it.
        metric: what was published, with its unit.
        better: ``higher`` or ``lower``, of that.
        published: the number; None where there is none.
        expected: ``better`` or ``worse`` than the baseline, of a claim without a number.
        ours: our metric, by its key in summary.json or its name in evaluation/scores.csv.
        ours_better: ``higher`` or ``lower``, of that.
        source: table, section or figure.
    """

    row: str
    baseline: bool
    metric: str
    better: str
    published: float | None
    expected: str
    ours: str
    ours_better: str
    source: str


@dataclass(frozen=True)
class Verdict:
    """A row and what became of it.

    Args:
        published: the row.
        scores: ours by seed.
        test: against the baseline; None without two seeds.
        word: the verdict.
    """

    published: PublishedRow
    scores: Mapping[int, float]
    test: SeedTest | None
    word: Word


def read_published(table: Path) -> tuple[PublishedRow, ...]:
    """The rows of a table's ``published.csv``.

    Raises:
        UserError: there is no such file.
        DataError: a column is missing, a direction is not one, or not exactly one row is the baseline.
    """
    path = table / PUBLISHED
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a table's folder, such as experiments/open_sora_plan/attention.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        found = tuple(_row(row) for row in rows)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}).") from None
    if sum(row.baseline for row in found) != 1:
        raise DataError(f"{path}: exactly one row must be the baseline.")
    return found


def _row(cells: Mapping[str, str]) -> PublishedRow:
    number = float(cells["published"]) if cells["published"] else None
    if {cells["better"], cells["ours_better"]} - SIGNS.keys() or cells["expected"] not in EXPECTED:
        raise ValueError("better and ours_better are higher or lower, expected is better, worse or empty")
    return PublishedRow(
        cells["row"], cells["baseline"] == "yes", cells["metric"], cells["better"], number, cells["expected"],
        cells["ours"], cells["ours_better"], cells["source"],
    )  # fmt: skip


def scores_of(sweeps: Iterable[Path], metric: str) -> Scores:
    """The last value of a metric by row and seed; of a row and seed that were trained twice, the later folder's."""
    found: dict[str, dict[int, float]] = {}
    for sweep in sweeps:
        for job in sorted(sweep.glob("*/.hydra/overrides.yaml")):
            words = dict(str(word).lstrip("+").partition("=")[::2] for word in yaml.safe_load(job.read_text()))
            row = next((value for key, value in words.items() if key.startswith("row/")), None)
            value = _value(job.parents[1], metric)
            if row is not None and value is not None:
                found.setdefault(row, {})[int(words.get("seed", 0))] = value
    return found


def _value(run: Path, metric: str) -> float | None:
    """A metric of a run: as logged last, or the mean over the clips of the last evaluation; None if it has none."""
    try:
        last = json.loads((run / SUMMARY).read_text())["last"]
    except (OSError, ValueError, KeyError):
        return None
    if metric in last:
        return float(last[metric])
    path = run / "evaluation" / "scores.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric]
    latest = max((int(row["step"]) for row in rows), default=None)
    values = [float(row["score"]) for row in rows if int(row["step"]) == latest]
    return sum(values) / len(values) if values else None


def verdicts(rows: Sequence[PublishedRow], scores: Scores) -> tuple[Verdict, ...]:
    """Every row against the baseline."""
    base = next(row for row in rows if row.baseline)
    return tuple(_verdict(row, base, scores) for row in rows)


def _verdict(row: PublishedRow, base: PublishedRow, scores: Scores) -> Verdict:
    ours, theirs = scores.get(row.row, {}), scores.get(base.row, {})
    test = None if row.baseline or not (ours and theirs) else seed_test(ours, theirs)
    return Verdict(row, ours, test, _word(row, base, ours, theirs, test))


def _word(
    row: PublishedRow, base: PublishedRow, ours: Mapping[int, float], theirs: Mapping[int, float], test: SeedTest | None
) -> Word:
    if not ours:
        return "not measured"
    if row.baseline:
        return "baseline"
    if not theirs:
        return "not measured"
    sign = claimed(row, base)
    if sign == 0:
        return "no claim"
    if test is None:
        return "one seed"
    if test.interval.low <= 0 <= test.interval.high:
        return "not resolvable at this size"
    return "same sign" if (test.difference > 0) == (sign * SIGNS[row.ours_better] > 0) else "opposite"


def claimed(row: PublishedRow, base: PublishedRow) -> int:
    """1 where the paper has the row better than the baseline, -1 where worse, 0 where it says neither."""
    if row.published is None or base.published is None:
        return EXPECTED[row.expected]
    gain = (row.published - base.published) * SIGNS[row.better]
    return (gain > 0) - (gain < 0)


def lines(found: Sequence[Verdict]) -> Iterator[str]:
    """The table in Markdown."""
    yield HEADER
    for one in found:
        row = one.published
        theirs = f"{row.published:g}" if row.published is not None else row.expected or "-"
        yield f"| {row.row} | {theirs} | {_ours(one.scores)} | {_over(one.test)} | {one.word} |"


def _ours(scores: Mapping[int, float]) -> str:
    if len(scores) < 2:
        return "".join(f"{value:.4g}, one seed" for value in scores.values())
    mean = mean_over_seeds([*scores.values()])
    return f"{mean.value:.4g}, s = {mean.std:.2g}, {mean.n} seeds"


def _over(test: SeedTest | None) -> str:
    if test is None:
        return ""
    return f"{test.difference:+.4g} ({test.interval.low:+.4g} to {test.interval.high:+.4g})"


def write_results(readme: Path, table: str) -> None:
    """Put the table between the marks of a README.

    Raises:
        DataError: the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise DataError(f"{readme}: the lines {BEGIN} and {END} are missing; results stand between them.")
    before, _, rest = text.partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts of a table, and put them into its README on request."""
    parser = argparse.ArgumentParser(prog="python -m vidlab.lab.claims.verdicts", description=main.__doc__)
    parser.add_argument("table", type=Path, help="its folder, such as experiments/open_sora_plan/attention")
    parser.add_argument("sweeps", type=Path, nargs="*", help="folders of its sweeps, runs/NAME/DATE")
    parser.add_argument("--write", action="store_true", help="put them into README.md of the table")
    given = parser.parse_args(arguments)
    try:
        rows = read_published(given.table)
        absent = [sweep for sweep in given.sweeps if not sweep.is_dir()]
        if absent:
            raise UserError(f"{absent[0]}: no such folder; give the folder of a sweep, runs/NAME/DATE.")
        found = verdicts(rows, scores_of(given.sweeps, rows[0].ours))
        table = "\n".join(lines(found))
        print(table)
        if given.write:
            write_results(given.table / "README.md", table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
