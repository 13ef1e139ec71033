"""Interquartile means over seeds and clips, and how often a run beats one of the first configuration."""

import math
from dataclasses import dataclass

from vidlab.lab.compare.comparison import Comparison, ConfigurationRow
from vidlab.lab.compare.measures import Measure
from vidlab.metrics.statistics.bootstrap import stratified_bootstrap
from vidlab.metrics.statistics.improvement import probability_of_improvement
from vidlab.metrics.statistics.over_seeds import Estimate, trimmed_mean

ROBUST_HEAD = ("metric", "configuration", "IQM", "95 %", "beats the first", "95 %")
ROBUST_EXPLAINED = (
    "*IQM*: mean of the middle half of all scores, seeds times clips; its interval draws seeds anew within each clip "
    "(stratified bootstrap). Clips of one run share its seed, which makes it too narrow where seeds matter: it decides "
    "nothing. *beats the first*: how often a run's mean is better than that of a run of the first configuration, ties "
    "count half."
)


@dataclass(frozen=True)
class Robust:
    """What single clips and runs that fail move little.

    Args:
        measure: the metric.
        row: the configuration.
        middle: the interquartile mean of seeds times clips.
        improvement: the probability that a run beats one of the first configuration; None for that itself, and where
            neither direction is better or a value is not finite.
    """

    measure: Measure
    row: ConfigurationRow
    middle: Estimate
    improvement: Estimate | None


def robust_rows(comparison: Comparison) -> list[Robust]:
    """A row for each configuration and metric whose clips were scored one by one, finite ones."""
    return [
        Robust(measure, row, middle, _improvement(comparison, measure, row))
        for measure in (*comparison.main, *comparison.others)
        for row in comparison.rows
        if (middle := interquartile_mean_of(row, measure.key)) is not None
    ]


def interquartile_mean_of(row: ConfigurationRow, key: str) -> Estimate | None:
    """Over the clips that all its runs share, each a stratum (Agarwal et al. 2021); None without finite scores."""
    scores = [run.clip_scores[key] for run in row.runs.values() if key in run.clip_scores]
    clips = sorted(set(scores[0]).intersection(*scores[1:])) if scores else []
    strata = [[one[clip] for one in scores] for clip in clips]
    if not strata or not all(math.isfinite(value) for part in strata for value in part):
        return None
    return stratified_bootstrap(strata, trimmed_mean)


def _improvement(comparison: Comparison, measure: Measure, row: ConfigurationRow) -> Estimate | None:
    first = comparison.rows[0]
    known = row.is_finite(measure.key) and first.is_finite(measure.key)
    if row is first or measure.higher_is_better is None or not known:
        return None
    sign = 1 if measure.higher_is_better else -1
    mine, others = ([sign * value for value in one.values(measure.key).values()] for one in (row, first))
    return probability_of_improvement(mine, others)


def robust_cells(one: Robust) -> tuple[str, ...]:
    """As ``ROBUST_HEAD`` calls them, names not yet escaped."""
    told = [one.measure.label, one.row.name]
    for found in (one.middle, one.improvement):
        interval = found.interval if found else None
        told.append(f"{found.value:.4g}" if found else "-")
        told.append(f"{interval.low:.4g} to {interval.high:.4g}" if interval else "-")
    return tuple(told)
