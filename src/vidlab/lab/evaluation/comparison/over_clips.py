"""Which differences between single checkpoints, or videos, are more than chance of the clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidlab.errors import UserError
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.evaluation.report import Evaluated
from vidlab.metrics.results import Difference, MetricResult, difference
from vidlab.metrics.statistics.significance import holm

LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """One metric of one run against the first run's.

    Args:
        metric: its name.
        subject: the run.
        result: its value.
        difference: to the first run's value; None where the two cannot be compared.
        refused: why they cannot.
        adjusted: the p-value after Holm's correction for all metrics and runs of the table.
    """

    metric: str
    subject: str
    result: MetricResult
    difference: Difference | None
    refused: str = ""
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``no difference shown``, or what keeps one from telling."""
        if self.difference is None:
            return f"not comparable: {self.refused}"
        told = self._is_told()
        if told is None:
            return "no test"
        if not told:
            return "no difference shown"
        higher = self.result.higher_is_better
        if higher is None:
            return "differs"
        return "better" if (self.difference.value > 0) == higher else "worse"

    def _is_told(self) -> bool | None:
        assert self.difference is not None
        if self.adjusted is not None:
            return self.adjusted < LEVEL
        interval = self.difference.interval
        return None if interval is None else not interval.low <= 0 <= interval.high


def compare(subjects: Sequence[Evaluated]) -> list[Compared]:
    """Every metric of every later subject against the first's.

    Single-clip scores are compared clip by clip (paired bootstrap); the p-values of the whole table are corrected
    together (Holm 1979), since among twenty true zeros one looks significant at 5 %.
    """
    first, *others = subjects
    rows = [
        _compared(name, other.name, other.scores.results, first.scores.results[name])
        for name in first.scores.results
        for other in others
        if name in other.scores.results
    ]
    values = [row.difference.p_value if row.difference else None for row in rows]
    return [_with(row, adjusted) for row, adjusted in zip(rows, holm(values), strict=True)]


def _compared(name: str, subject: str, results: Mapping[str, MetricResult], base: MetricResult) -> Compared:
    result = results[name]
    try:
        return Compared(name, subject, result, difference(result, base))
    except UserError as error:
        return Compared(name, subject, result, None, str(error).split("they differ in ")[-1].split(". ")[0])


def _with(row: Compared, adjusted: float | None) -> Compared:
    return Compared(row.metric, row.subject, row.result, row.difference, row.refused, adjusted)


def comparison_table(subjects: Sequence[Evaluated], rows: Sequence[Compared]) -> str:
    """Values side by side and what can be said of their differences, as Markdown."""
    first = subjects[0]
    name_of_first = markdown(first.name)
    lines = [
        f"Differences are to {name_of_first}. p: paired bootstrap over clips, corrected for the whole table (Holm). It "
        "says how much other clips could change, for exactly these weights; of another training it says nothing.",
        "",
        "| metric | run | value | difference | 95 % interval | p | verdict |",
        "|---" * 7 + "|",
    ]
    for name, base in first.scores.results.items():
        lines.append(f"| {name} | {name_of_first} | {base.value:.4g} | | | | |")
        lines += [_line(row) for row in rows if row.metric == name]
    return "\n".join(lines)


def _line(row: Compared) -> str:
    change, subject = row.difference, markdown(row.subject)
    if change is None:
        return f"| | {subject} | {row.result.value:.4g} | | | | {row.verdict} |"
    interval = "-" if change.interval is None else f"{change.interval.low:+.4g} to {change.interval.high:+.4g}"
    p_value = "-" if row.adjusted is None else f"{row.adjusted:.3g}"
    return f"| | {subject} | {row.result.value:.4g} | {change.value:+.4g} | {interval} | {p_value} | {row.verdict} |"
