"""The stratified bootstrap: runs are drawn anew within each configuration, task or metric."""

from collections.abc import Callable, Sequence

import numpy as np

from vidlab.metrics.intervals import LEVEL, Interval
from vidlab.metrics.statistics.over_seeds import Estimate

RESAMPLES = 2000
Statistic = Callable[[np.ndarray], np.ndarray]


def stratified_bootstrap(
    strata: Sequence[Sequence[float]],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """A statistic of runs in strata with its percentile interval.

    The method of Agarwal et al. (2021, section 4.1), after Efron and Tibshirani (1993, chapter 13).

    Within a stratum of n runs, n - 1 are drawn with replacement: n of them would spread by (n - 1) / n too little, a
    third at 3 seeds (Rao and Wu 1988). No factor makes up for the standard deviations being estimated, so the interval
    holds its level with about 20 runs in all; for fewer in one stratum use ``mean_over_seeds``.

    Args:
        strata: the runs' values by configuration, task or metric (brought to one scale); sizes may differ.
        statistic: from (..., n) to (...), such as ``trimmed_mean``; it sees the runs of all strata side by side.
        resamples: how often they are drawn.
        level: nominal coverage.
        seed: of the draws.

    Returns:
        The statistic of all values; without an interval where a stratum has fewer than 2 runs or an infinite one.

    Raises:
        ValueError: there is no stratum, or an empty one.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in strata]
    if not parts or not all(len(part) for part in parts):
        raise ValueError("a bootstrap needs strata of one run or more")
    whole = np.concatenate(parts)
    value = float(statistic(whole))
    if min(map(len, parts)) < 2 or not np.isfinite(whole).all():
        return Estimate(value, None, len(whole))
    draws = np.random.default_rng(seed)
    picks = [part[draws.integers(len(part), size=(resamples, len(part) - 1))] for part in parts]
    found = statistic(np.concatenate(picks, axis=1))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    told = f"stratified bootstrap, {len(parts)} strata, {resamples} resamples"
    return Estimate(value, Interval(float(low), float(high), level, told), len(whole))
