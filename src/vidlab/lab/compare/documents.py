"""A comparison as Markdown and as a table for other programs."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vidlab.files import cells, open_table, write_text
from vidlab.lab.cli.safe_text import markdown
from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.measures import Measure
from vidlab.lab.compare.reading.runs import COSTS
from vidlab.lab.compare.robust import ROBUST_EXPLAINED, ROBUST_HEAD, Robust, robust_cells, robust_rows
from vidlab.lab.compare.scaling import SIZES, size_fits
from vidlab.lab.compare.words import amount, duration, headline, sentences, warnings
from vidlab.metrics.intervals import Interval

COLUMNS = (
    *("configuration", "metric", "series", "better", "decides", "seeds", "n", "mean", "std", "seeds_low", "seeds_high"),
    *("clips_low", "clips_high", "against", "difference", "p", "p_holm", "smallest_effect", "verdict", "flops"),
    *("tokens", "seconds", "parameters", "iqm", "iqm_low", "iqm_high", "improvement", "improvement_low"),
    *("improvement_high",),
)
HEAD = (
    *("configuration", "seeds", "mean", "over seeds", "over clips", "p (Holm)", "smallest effect", "FLOPs", "tokens"),
    *("time", "parameters"),
)
REST = "Everything else that was measured"  # the heading before which a terminal's report ends
EXPLAINED = (
    "Runs that differ in their seed alone are one configuration. *over seeds*: 95 % interval of the mean for "
    "other seeds (Student's t). *over clips*: for other held-out clips with these very runs. *p*: against the "
    "first configuration, over common seeds where there are two (paired t test), corrected for all tests of this "
    "page (Holm). *smallest effect*: the difference that as many seeds, spread as these are, find in 4 of 5 "
    "comparisons at 5 %. Costs are means of a run, of its denoiser."
)


def ends(interval: Interval | None) -> str:
    """``low to high``, or a dash."""
    return "-" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"


def write_markdown(path: Path, comparison: Comparison) -> Path:
    """Everything but curves and videos."""
    parts = [f"# Comparison of {markdown(comparison.selection.title)}", f"**{markdown(headline(comparison))}**"]
    parts += [_listed(sentences(comparison)), _listed(warnings(comparison))]
    for measure in comparison.main:
        parts += [f"## {markdown(measure.label)} ({measure.direction})", _table(comparison, measure)]
    if comparison.main:
        parts.append(EXPLAINED)
    parts += _laws(comparison)
    rows = robust_rows(comparison)
    if comparison.others or rows:
        parts += [f"## {REST}", "Not tested: every further test costs the others power."]
        parts += [_others(comparison)] if comparison.others else []
        parts += [_robust(rows), ROBUST_EXPLAINED] if rows else []
    if comparison.command:
        parts.append(f"    {comparison.command}")
    return write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def _table(comparison: Comparison, measure: Measure) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1)]
    for row in comparison.rows:
        lines.append(f"| {' | '.join((markdown(row.name), *numbers(comparison, row, measure)))} |")
    return "\n".join(lines)


def numbers(comparison: Comparison, row: ConfigurationRow, measure: Measure) -> tuple[str, ...]:
    """The cells of a row behind its name, as ``HEAD`` calls them."""
    mean, verdict = row.means.get(measure.key), comparison.verdicts.get((measure.key, row.name))
    adjusted, unseen = (verdict.adjusted, verdict.unseen) if verdict else (None, None)
    return (
        str(mean.n) if mean else "0",
        f"{mean.value:.4g}" if mean else "-",
        ends(mean.interval if mean else None),
        ends(row.over_clips.get(measure.key)),
        "-" if adjusted is None else f"{adjusted:.2g}",
        "-" if unseen is None else f"{unseen:.2g}",
        amount(row.costs.get("flops")),
        amount(row.costs.get("tokens")),
        duration(row.costs.get("seconds")),
        amount(row.parameters),
    )


def _laws(comparison: Comparison) -> list[str]:
    found = []
    for measure in comparison.main:
        for fit in size_fits(comparison.rows, measure):
            of, law = SIZES[fit.axis], fit.law
            told = (
                f"{measure.label} of {fit.name} goes with {of} to the power {law.exponent:.3g} ({ends(law.interval)})"
            )
            found.append(f"- {markdown(told)}, {len(law.points)} runs")
    return ["## With size", "\n".join(found)] if found else []


def _others(comparison: Comparison) -> str:
    lines = ["| metric | configuration | seeds | mean | over seeds | over clips |", "|---|---|" + "---:|" * 4]
    for measure in comparison.others:
        for row in comparison.rows:
            if measure.key in row.means:
                line = numbers(comparison, row, measure)[:4]
                lines.append(f"| {markdown(measure.label)} | {markdown(row.name)} | {' | '.join(line)} |")
    return "\n".join(lines)


def _robust(rows: Sequence[Robust]) -> str:
    lines = [f"| {' | '.join(ROBUST_HEAD)} |", "|---|---|" + "---:|" * 4]
    lines += [f"| {' | '.join(map(markdown, robust_cells(one)))} |" for one in rows]
    return "\n".join(lines)


def write_table(path: Path, comparison: Comparison) -> Path:
    """A row for each configuration and metric, numbers in full precision."""
    found = {(one.measure.key, one.row.name): one for one in robust_rows(comparison)}
    with open_table(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for measure in (*comparison.main, *comparison.others):
            for row in comparison.rows:
                if measure.key in row.means:
                    robust = _robust_record(found.get((measure.key, row.name)))
                    record = [*_record(comparison, row, measure), *robust]
                    writer.writerow(cells(["" if value is None else value for value in record]))
    return path


def _record(comparison: Comparison, row: ConfigurationRow, measure: Measure) -> list[object]:
    mean, clips = row.means[measure.key], row.over_clips.get(measure.key)
    verdict = comparison.verdicts.get((measure.key, row.name))
    test, seeds = verdict.test if verdict else None, mean.interval
    direction = {True: "higher", False: "lower", None: ""}[measure.higher_is_better]
    return [
        row.name, measure.label, measure.series, direction, "yes" if measure in comparison.main else "",
        " ".join(map(str, sorted(row.values(measure.key)))), mean.n, mean.value, mean.std, seeds and seeds.low,
        seeds and seeds.high, clips and clips.low, clips and clips.high, verdict and verdict.second,
        test and test.difference, test and test.p_value, verdict and verdict.adjusted, verdict and verdict.unseen,
        verdict and verdict.text, *(row.costs.get(kind) for kind in COSTS), row.parameters,
    ]  # fmt: skip


def _robust_record(one: Robust | None) -> list[object]:
    found: list[object] = []
    for part in (one.middle, one.improvement) if one else (None, None):
        ends = part.interval if part else None
        found += [part and part.value, ends and ends.low, ends and ends.high]
    return found
