"""How often a run of one configuration beats a run of another."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from vidlab.metrics.intervals import LEVEL, Interval
from vidlab.metrics.statistics.over_seeds import Estimate


def probability_of_improvement(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run X of the first and a run Y of the second configuration.

    This is Mann and Whitney's U over the number of pairs (1947), which Agarwal et al. (2021, section 4.3) recommend
    beside the size of the difference. The interval is Newcombe's method 5 (2006), with a correction for continuity:
    the probabilities that lie within the normal quantile times Hanley and McNeil's standard deviation, taken at that
    probability. It has a width with few runs too, where a bootstrap of fully separated runs has none.

    Args:
        first, second: one value per run, at least 1 each; higher counts as better.
        level: nominal coverage.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    value = float(((x[:, None] > y).mean() + (x[:, None] >= y).mean()) / 2)
    low, high = (_limit(value, len(x), len(y), level, side) for side in (0.0, 1.0))
    return Estimate(value, Interval(low, high, level, "Newcombe's method 5"), len(x) + len(y))


def _limit(value: float, n: int, m: int, level: float, side: float) -> float:
    """The probability towards ``side`` from which ``value`` is just as many standard deviations away."""
    step = 1 / (2 * n * m)  # half the distance of two values of U: the correction for continuity
    if abs(value - side) <= step * (1 + 1e-9):
        return side
    quantile = float(stats.norm.ppf((1 + level) / 2))
    others = (n + m) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + others * (1 - p) / (2 - p) + others * p / (1 + p)) / (n * m)
        return abs(value - p) - step - quantile * math.sqrt(variance)

    # the spread is the larger near ``value``, and there is none at ``side``
    near = value + (side - value) * 1e-9
    return float(optimize.brentq(excess, near, side))
