"""A comparison in words: the verdict first, and what a reader must know before believing it."""

from collections.abc import Sequence

from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.measures import Measure

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SHOWN, MOST_LEFT_OUT = 6, 12


def amount(value: float | None) -> str:
    """A number of things with a unit's prefix, such as ``836 G``; a dash for none."""
    if value is None:
        return "-"
    size, prefix = next((one for one in UNITS if abs(value) >= one[0]), (1.0, ""))
    return f"{value / size:.3g}{f' {prefix}' if prefix else ''}"


def duration(seconds: float | None) -> str:
    """Such as ``24 s``, ``12 min`` or ``3.4 h``; a dash for none."""
    if seconds is None:
        return "-"
    return (
        f"{seconds:.3g} s"
        if seconds < 100
        else f"{seconds / 60:.3g} min"
        if seconds < 6000
        else f"{seconds / 3600:.3g} h"
    )


def few(names: Sequence[str]) -> str:
    """A list of names that ends in how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def headline(comparison: Comparison) -> str:
    """The answer in one sentence, by the first metric that decides."""
    if len(comparison.rows) == 1:
        return f"One configuration, {_runs(comparison.rows[0])}: there is nothing to compare it with."
    if not comparison.main:
        return "No metric was measured that could decide between the configurations."
    measure = comparison.main[0]
    having = ranking(comparison, measure)
    if len(having) < 2:
        return f"{measure.label} was measured in {len(having)} of {len(comparison.rows)} configurations."
    ranked = [row for row in having if row.is_finite(measure.key)]
    if len(ranked) < 2:
        return f"{measure.label} is finite in {len(ranked)} of {len(comparison.rows)} configurations."
    if max(len(row.values(measure.key)) for row in ranked) == 1:
        return (
            f"{ranked[0].name} comes first in {measure.label} in a ranking from one seed, which says nothing about "
            "another: repeat it with seed=0,1,2."
        )
    shown = [one for row in having if (one := comparison.verdicts.get((measure.key, row.name)))]
    told = {
        outcome: [one.first for one in shown if one.outcome == outcome] for outcome in ("better", "worse", "differs")
    }
    first = comparison.rows[0].name
    if not comparison.rows[0].is_finite(measure.key):
        return f"{measure.label} has no finite mean in {first}, with which the others are compared: nothing was tested."
    parts = [f"{few(names)} {_verb(names, outcome)} {first}" for outcome, names in told.items() if names]
    rest = [one.first for one in shown if one.outcome == "no difference shown"]
    if not parts:
        return f"No difference in {measure.label} was shown between {first} and {few(rest) or 'the others'}."
    if rest:
        parts.append(f"between {first} and {few(rest)} no difference was shown")
    return f"In {measure.label}, {'; '.join(parts)}."


def _verb(names: Sequence[str], outcome: str) -> str:
    plural = len(names) > 1
    return (
        f"{'differ' if plural else 'differs'} from"
        if outcome == "differs"
        else f"{'are' if plural else 'is'} {outcome} than"
    )


def _runs(row: ConfigurationRow) -> str:
    return "one seed" if len(row.runs) == 1 else f"{len(row.runs)} seeds"


def ranking(comparison: Comparison, measure: Measure) -> list[ConfigurationRow]:
    """The configurations that have a metric, best first; in their order where neither direction is better.

    Those with a run that diverged, whose mean is not finite, come last.
    """
    having = [row for row in comparison.rows if measure.key in row.means]
    finite = [row for row in having if row.is_finite(measure.key)]
    lost = [row for row in having if not row.is_finite(measure.key)]
    if measure.higher_is_better is not None:
        finite.sort(key=lambda row: row.means[measure.key].value, reverse=measure.higher_is_better)
    return [*finite, *lost]


def sentences(comparison: Comparison) -> list[str]:
    """One line for each verdict of the metrics that decide; none where there was one seed, which the headline says."""
    found = []
    for measure in comparison.main:
        for row in comparison.rows[1:]:
            verdict = comparison.verdicts.get((measure.key, row.name))
            if verdict is not None and verdict.outcome != "one seed":
                p = f" (p {verdict.adjusted:.2g})" if verdict.test and verdict.adjusted is not None else ""
                pair = f"{row.name} against {comparison.rows[0].name}: "
                named = verdict.outcome in ("better", "worse", "differs")
                found.append(f"{measure.label}: {'' if named else pair}{verdict.text}{p}.")
    return found


def warnings(comparison: Comparison) -> list[str]:
    """Failed and missing runs, single seeds, unequal seeds, data and noise, by name."""
    rows = comparison.rows
    found = [*_left_out(comparison), *_diverged(comparison)]
    alone = [row.name for row in rows if len(row.runs) == 1]
    if alone and len(rows) > 1:
        found.append(f"One seed only, so no interval and no test: {few(alone)}.")
    seeds = {tuple(sorted(row.runs)) for row in rows}
    if len(seeds) > 1:
        every = sorted({seed for one in seeds for seed in one})
        lacking = [f"{row.name} lacks {', '.join(str(s) for s in every if s not in row.runs)}" for row in rows
                   if set(every) - set(row.runs)]  # fmt: skip
        found.append(f"Not all configurations have all seeds: {few(lacking)}.")
    return [*found, *_image_models(comparison), *sameness(comparison), *comparison.selection.notes]


def _image_models(comparison: Comparison) -> list[str]:
    """What image models cost that frozen parts of some configurations were: no budget and no column counts it."""
    costs = {row.name: max(run.work.image_model_flops for run in row.runs.values()) for row in comparison.rows}
    return [
        f"{name} stands on an image model whose training took {amount(flops)} FLOPs, once for all its runs; "
        "the column FLOPs does not count them."
        for name, flops in list(costs.items())[:SHOWN]
        if flops
    ]


def _left_out(comparison: Comparison) -> list[str]:
    """Each run that did not finish, with the settings that not all runs share."""
    runs = comparison.left_out
    every = [set(run.overrides) for run in comparison.selection.runs if run.overrides]
    shared = set.intersection(*every) if len(every) > 1 else set()
    found = []
    for run in runs[:MOST_LEFT_OUT]:
        own = " ".join(word for word in run.overrides if word not in shared)
        why = f" ({run.message})" if run.message else ""
        found.append(f"{run.name}{f', {own}' if own else ''}: {run.state}{why}; it counts nowhere below.")
    rest = [run.name for run in runs[MOST_LEFT_OUT:]]
    return [*found, f"{len(rest)} more did not finish: {', '.join(rest)}."] if rest else found


def _diverged(comparison: Comparison) -> list[str]:
    """Where the mean of a metric that decides is not finite."""
    found = []
    for measure in comparison.main:
        lost = [row.name for row in comparison.rows if measure.key in row.means and not row.is_finite(measure.key)]
        if lost:
            found.append(f"{measure.label} is not finite in a run of {few(lost)}: it is ranked last.")
    return found


def sameness(comparison: Comparison) -> list[str]:
    """Which runs of one seed saw the same clips in the same order, and the same noise."""
    found = []
    for what, attribute in (("clips in the same order", "data_order"), ("noise", "noise")):
        by_seed: dict[int, dict[str, list[str]]] = {}
        unknown = 0
        for row in comparison.rows:
            for seed, run in row.runs.items():
                mark = getattr(run, attribute)
                unknown += mark is None
                if mark is not None:
                    by_seed.setdefault(seed, {}).setdefault(mark, []).append(row.name)
        differing = {seed: marks for seed, marks in by_seed.items() if len(marks) > 1}
        if not by_seed:
            found.append(f"Whether runs saw the same {what} was not recorded.")
        elif not differing:
            rest = f" ({unknown} runs have no record)" if unknown else ""
            found.append(f"Runs of one seed saw the same {what}{rest}.")
        for seed, marks in list(differing.items())[:3]:
            told = "; ".join(few(names) for names in marks.values())
            found.append(f"Seed {seed}: not all runs saw the same {what}. Alike were: {told}.")
    return found
