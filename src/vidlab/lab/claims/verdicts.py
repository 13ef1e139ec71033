"""Whether a table of ``experiments/`` came out as published.

    python -m vidlab.lab.claims.verdicts TABLE [SWEEP ...] [--write]

TABLE is a folder with ``published.csv``, a SWEEP the folder of ``python train.py -m experiment=...``, one or several.
Every row is compared with the baseline row over common seeds, each on its own; runs of other settings (another size,
another budget) are a table of their own. ``--write`` puts the result into the table's README.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml  # type: ignore[import-untyped]

from vidlab.command_line import exit_code
from vidlab.errors import DataError, UserError
from vidlab.metrics.run_scores import SCORES, read_scores
from vidlab.metrics.statistics.over_seeds import mean_over_seeds
from vidlab.metrics.statistics.significance import SeedTest
from vidlab.metrics.statistics.verdicts import PairVerdict, SeedScores, compare_pair

Word = Literal[
    "baseline", "not measured", "no claim", "one seed", "not finite", "not resolvable at this size", "same sign",
    "opposite",
]  # fmt: skip
Scores = Mapping[str, Mapping[int, float]]
Settings = tuple[str, ...]
PUBLISHED, SUMMARY = "published.csv", "summary.json"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEADER = "| row | published | ours | over the baseline, 95 % interval | verdict |\n|---|---|---|---|---|"
SIGNS = {"higher": 1, "lower": -1}
NO_SETTINGS = ("row/", "seed", "name", "experiment", "hydra")  # that tell no two tables apart
# In the value of a setting, the folders before the last part of an absolute path or of an address.
PLACE = re.compile(r"""(?<=[=\[,'"])(?:\w+:/|/|~)(?:[^,'"\]]*/)?(?=[^/])""")
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
        pair: against the baseline; None where one of both was not measured.
    """

    published: PublishedRow
    scores: Mapping[int, float]
    pair: PairVerdict | None
    word: Word

    @property
    def test(self) -> SeedTest | None:
        """Against the baseline; None without two seeds."""
        return self.pair.test if self.pair else None


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


def scores_of(sweeps: Iterable[Path], metric: str) -> Mapping[Settings, Scores]:
    """The last value of a metric by row and seed, for each set of further settings (another size, another budget).

    Of a row and seed that were trained twice with the same settings, the later folder's counts.

    Raises:
        UserError: the sweeps are of several tables, whose rows may share names.
    """
    found: dict[Settings, dict[str, dict[int, float]]] = {}
    tables: set[str] = set()
    for sweep in sweeps:
        for job in sorted(sweep.glob("*/.hydra/overrides.yaml")):
            words = dict(str(word).lstrip("+").partition("=")[::2] for word in yaml.safe_load(job.read_text("utf-8")))
            rows = {key.removeprefix("row/"): value for key, value in words.items() if key.startswith("row/")}
            tables |= rows.keys()
            value = _value(job.parents[1], metric)
            if rows and value is not None:
                further = (f"{key}={word}" for key, word in words.items() if not key.startswith(NO_SETTINGS))
                scores = found.setdefault(tuple(sorted(further)), {})
                scores.setdefault(next(iter(rows.values())), {})[int(words.get("seed", 0))] = value
    if len(tables) > 1:
        raise UserError(f"These sweeps are of several tables ({', '.join(sorted(tables))}); give those of one.")
    return found


def _value(run: Path, metric: str) -> float | None:
    """A metric of a run: as logged last, or the mean over the clips of the last evaluation; None if it has none."""
    try:
        last = json.loads((run / SUMMARY).read_text("utf-8"))["last"]
    except (OSError, ValueError, KeyError):
        return None
    if metric in last:
        return float(last[metric])
    path = run / "evaluation" / SCORES
    rows = [row for row in read_scores(path) if row.metric == metric] if path.is_file() else []
    latest = max((row.step for row in rows), default=None)
    values = [row.score for row in rows if row.step == latest]
    return sum(values) / len(values) if values else None


def verdicts(rows: Sequence[PublishedRow], scores: Scores) -> tuple[Verdict, ...]:
    """Every row against the baseline."""
    base = next(row for row in rows if row.baseline)
    measured = SeedScores(base.ours, SIGNS[base.ours_better] > 0, scores)
    others = [row.row for row in rows if row is not base and {row.row, base.row} <= scores.keys()]
    pairs = {row: compare_pair(measured, row, base.row) for row in others}
    return tuple(
        Verdict(row, scores.get(row.row, {}), pairs.get(row.row), _word(row, base, scores, pairs.get(row.row)))
        for row in rows
    )


def _word(row: PublishedRow, base: PublishedRow, scores: Scores, pair: PairVerdict | None) -> Word:
    if row.baseline and scores.get(row.row):
        return "baseline"
    if pair is None:
        return "not measured"
    sign = claimed(row, base)
    if sign == 0:
        return "no claim"
    if pair.refused:
        return "not finite"
    if pair.test is None:
        return "one seed"
    if pair.test.interval.low <= 0 <= pair.test.interval.high:
        return "not resolvable at this size"
    return "same sign" if (pair.test.difference > 0) == (sign * SIGNS[row.ours_better] > 0) else "opposite"


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
        yield f"| {row.row} | {theirs} | {_ours(one.scores)} | {_over(one.test)} | {one.word}{_unseen(one)} |"


def tables_of(rows: Sequence[PublishedRow], measured: Mapping[Settings, Scores]) -> Iterator[str]:
    """A table for each set of settings, the sweep's own first; one without scores where nothing was measured."""
    for number, settings in enumerate(sorted(measured, key=lambda words: (len(words), words)) or [()]):
        if number:
            yield ""
        if settings:
            yield f"With `{' '.join(map(_without_folders, settings))}`:\n"
        yield from lines(verdicts(rows, measured.get(settings, {})))


def _without_folders(setting: str) -> str:
    """A setting for readers elsewhere: of places on this machine the last part."""
    return PLACE.sub("", setting)


def _ours(scores: Mapping[int, float]) -> str:
    if len(scores) < 2:
        return "".join(f"{value:.4g}, one seed" for value in scores.values())
    mean = mean_over_seeds([*scores.values()])
    return f"{mean.value:.4g}, s = {mean.std:.2g}, {mean.n} seeds"


def _over(test: SeedTest | None) -> str:
    if test is None:
        return ""
    return f"{test.difference:+.4g} ({test.interval.low:+.4g} to {test.interval.high:+.4g})"


def _unseen(one: Verdict) -> str:
    """What could not have been seen, where nothing was."""
    if one.word != "not resolvable at this size" or one.pair is None or not one.pair.unseen:
        return ""
    return f"; an effect below {one.pair.unseen:.2g} would not have been seen"


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


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the verdicts of a table, and put them into its README on request."""
    parser = argparse.ArgumentParser(prog="python -m vidlab.lab.claims.verdicts", description=main.__doc__)
    parser.add_argument("table", type=Path, help="its folder, such as experiments/open_sora_plan/attention")
    parser.add_argument("sweeps", type=Path, nargs="*", help="folders of its sweeps, runs/NAME/DATE")
    parser.add_argument("--write", action="store_true", help="put them into README.md of the table")
    given = parser.parse_args(arguments)
    rows = read_published(given.table)
    absent = [sweep for sweep in given.sweeps if not sweep.is_dir()]
    if absent:
        raise UserError(f"{absent[0]}: no such folder; give the folder of a sweep, runs/NAME/DATE.")
    table = "\n".join(tables_of(rows, scores_of(given.sweeps, rows[0].ours)))
    print(table)
    if given.write:
        write_results(given.table / "README.md", table)


if __name__ == "__main__":
    raise SystemExit(main())
