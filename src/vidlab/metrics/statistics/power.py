"""What a comparison could have seen: the smallest effect that a number of seeds detects."""

from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

POWER, LEVEL = 0.8, 0.05
NODES = 128


def power_of(effect: float, std_error: float, freedom: float, level: float = LEVEL) -> float:
    """The probability that a two-sided t test finds an effect: from the noncentral t distribution (Cohen 1988).

    Args:
        effect: the true difference, in the unit of the values.
        std_error: of the estimated difference; std / sqrt(n) for n paired seeds.
        freedom: degrees of freedom; n - 1 for n paired seeds.
        level: of the test.
    """
    if std_error == 0:
        return level if effect == 0 else 1.0
    limit, shift = stats.t.ppf(1 - level / 2, freedom), effect / std_error
    # scipy's own noncentral t is not a number for 1 degree of freedom and large shifts: given the ratio of the
    # estimated to the true error, t is beyond the limit with a normal probability, whose mean over ratios is taken
    ratios, weights = _error_ratios(freedom)
    beyond = special.ndtr(shift - limit * ratios) + special.ndtr(-shift - limit * ratios)
    return float(weights @ beyond)


@lru_cache(maxsize=64)
def _error_ratios(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimated over true standard errors, a chi variable, and their probabilities (Gauss and Legendre's nodes)."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, freedom) / freedom), weights / 2


def smallest_effect(std_error: float, freedom: float, level: float = LEVEL, power: float = POWER) -> float:
    """The difference that a two-sided t test finds with probability ``power``, where ``power_of`` reaches it.

    Args:
        std_error: of the estimated difference; 0 gives 0.
        freedom: degrees of freedom, more than 0.
        level: of the test; divide it by the number of tests for the strictest step of Holm's correction.
        power: how often the effect is to be found, between ``level`` and 1.
    """
    if std_error == 0:
        return 0.0
    top = float(stats.t.ppf(1 - level / 2, freedom))
    while power_of(top, 1.0, freedom, level) < power:
        top *= 2
    return std_error * float(optimize.brentq(lambda shift: power_of(shift, 1.0, freedom, level) - power, 0.0, top))
