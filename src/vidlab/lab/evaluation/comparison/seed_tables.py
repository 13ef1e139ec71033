"""A comparison over seeds as text: the verdicts first, then the numbers they rest on."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vidlab.files import cells, open_table
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.evaluation.comparison.over_seeds import Group, Row, SeedComparison
from vidlab.metrics.intervals import Interval
from vidlab.metrics.statistics.verdicts import PairVerdict

HEAD = ("metric", "configuration", "seeds", "mean", "over seeds", "over clips", "difference", "p", "verdict")
COLUMNS = (
    *("metric", "better", "configuration", "seeds", "n", "mean", "std", "seeds_low", "seeds_high", "clips_low"),
    *("clips_high", "baseline", "test", "difference", "difference_low", "difference_high", "p", "p_holm", "p_exact"),
    *("difference_clips_low", "difference_clips_high", "unseen_below", "verdict"),
)
EXPLAINED = (
    "Runs that differ in their seed alone are one configuration. *over seeds*: 95 % interval of the mean for other "
    "seeds (Student's t). *over clips*: for other held-out clips with these very runs; it grows narrow with many "
    "clips and says nothing of another training. *difference*: to the first configuration, over common seeds where "
    "there are two (paired t test), else over all (Welch). *p*: corrected for this table (Holm). What could not have "
    "been seen is the difference that as many seeds, which spread as these do, find in 4 of 5 comparisons at 5 %."
)


def front(comparison: SeedComparison) -> str:
    """What is read first: a sentence for each configuration and main metric, and their table, as Markdown."""
    groups = comparison.groups
    if len(groups) == 1:
        seeds = ", ".join(map(str, groups[0].configuration.seeds))
        head = [f"One configuration, seeds {seeds}: there is nothing to compare it with."]
    else:
        runs = sum(len(group.runs) for group in groups)
        head = [f"{len(groups)} configurations, {runs} runs, against {markdown(groups[0].name)}:", ""]
        head += [f"- {sentence(row.verdict)}{_clips_note(row)}" for row in comparison.rows if row.verdict]
        head += [f"- {note}" for group in groups[1:] if (note := _other_seeds(group, groups[0]))]
    return "\n".join([*head, "", table(comparison.rows)])


def _other_seeds(group: Group, baseline: Group) -> str:
    """What is done about seeds that two configurations do not share."""
    mine, other = set(group.configuration.seeds), set(baseline.configuration.seeds)
    if mine == other or min(len(mine), len(other)) < 2:
        return ""
    common = ", ".join(map(str, sorted(mine & other)))
    how = f"the common seeds {common} are compared" if len(mine & other) >= 2 else "all seeds are compared, unpaired"
    return f"{markdown(group.name)} has seeds {', '.join(map(str, sorted(mine)))}: {how}."


def sentence(verdict: PairVerdict) -> str:
    """The verdict of one pair, as a line of Markdown."""
    first, second = markdown(verdict.first), markdown(verdict.second)
    told = {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "differs": f"{first} differs from {second}",
    }.get(verdict.outcome, f"{first}: {verdict.text}")
    return f"**{verdict.metric}**: {told}{_p(verdict)}."


def _clips_note(row: Row) -> str:
    """What is added where a difference that seeds show could be one of these clips alone."""
    interval = row.difference_over_clips
    if interval is None or not row.depends_on_clips:
        return ""
    return f" This is of these clips: on others it could be {interval.low:+.2g} to {interval.high:+.2g}."


def _p(verdict: PairVerdict) -> str:
    return f" (p {verdict.adjusted:.2g})" if verdict.test is not None and verdict.adjusted is not None else ""


def table(rows: Sequence[Row], whole: bool = False) -> str:
    """One row for each metric and configuration, aligned, as Markdown.

    Args:
        rows: in order.
        whole: whether verdicts are whole clauses, with what could not have been seen.
    """
    lines = [HEAD, *(_cells(row, whole) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
    texts = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {text} |" for text in (texts[0], rule, *texts[1:])).replace(f"| {rule} |", f"|-{rule}-|")


def _cells(row: Row, whole: bool) -> tuple[str, ...]:
    verdict = row.verdict
    test = verdict.test if verdict else None
    higher: dict[bool | None, str] = {True: " (higher is better)", False: " (lower is better)"}
    first = verdict is None
    direction = higher.get(_higher(row), "") if first else ""
    return (
        f"{row.metric}{direction}" if first else "",
        markdown(row.group.name),
        str(row.mean.n),
        f"{row.mean.value:.4g}",
        _ends(row.mean.interval),
        _ends(row.over_clips),
        f"{test.difference:+.3g}" if test else "",
        f"{verdict.adjusted:.2g}" if verdict and verdict.adjusted is not None else "",
        "" if verdict is None else markdown(verdict.text) if whole else verdict.outcome,
    )


def _higher(row: Row) -> bool | None:
    return next(
        run.scores.results[row.metric].higher_is_better for run in row.group.runs if row.metric in run.scores.results
    )


def _ends(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"


def write_comparison_csv(path: Path, comparison: SeedComparison) -> Path:
    """Every row with everything that is known of it."""
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in (*comparison.rows, *comparison.others):
            writer.writerow(cells(["" if value is None else value for value in _record(row)]))
    return path


def _record(row: Row) -> list[object]:
    verdict, clips, seeds = row.verdict, row.over_clips, row.mean.interval
    test, between = verdict.test if verdict else None, row.difference_over_clips
    return [
        row.metric, {True: "higher", False: "lower", None: ""}[_higher(row)], row.group.name,
        " ".join(map(str, row.group.results(row.metric))), row.mean.n, row.mean.value, row.mean.std,
        seeds and seeds.low, seeds and seeds.high, clips and clips.low, clips and clips.high,
        verdict and verdict.second, test and test.kind, test and test.difference, test and test.interval.low,
        test and test.interval.high, test and test.p_value, verdict and verdict.adjusted, test and test.p_exact,
        between and between.low, between and between.high, verdict and verdict.unseen, verdict and verdict.text,
    ]  # fmt: skip
