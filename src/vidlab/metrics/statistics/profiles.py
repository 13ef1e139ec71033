"""Performance profiles: the share of runs above each threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vidlab.metrics.intervals import LEVEL


@dataclass(frozen=True)
class Profile:
    """A curve over thresholds.

    Args:
        thresholds: in the unit of the scores, growing.
        above: the share of runs with a higher score, 0 to 1.
        low, high: the band, for each threshold on its own.
        n: how many runs.
        level: nominal coverage of the band at one threshold.
    """

    thresholds: tuple[float, ...]
    above: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    level: float


def performance_profile(scores: Sequence[float], thresholds: Sequence[float], level: float = LEVEL) -> Profile:
    """The share of runs that score above each threshold (Dolan and Moré 2002; Agarwal et al. 2021, section 4.2).

    The band is Wilson's interval of a share (1927) at each threshold. It keeps a width where all runs are on one side,
    and for runs of several tasks it is on the safe side: their count varies less than a binomial one (Hoeffding 1956).

    Args:
        scores: one per run (or per clip), at least 1; of several tasks on one scale.
        thresholds: where the share is taken.
        level: nominal coverage.
    """
    values = np.asarray(scores, dtype=np.float64)
    places = np.sort(np.asarray(thresholds, dtype=np.float64))
    above = (values > places[:, None]).mean(axis=1)  # (thresholds,)
    n, z = len(values), float(stats.norm.ppf((1 + level) / 2))
    center = (above + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(above * (1 - above) / n + z**2 / (4 * n**2))
    low, high = np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)
    return Profile(_tuple(places), _tuple(above), _tuple(low), _tuple(high), n, level)


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))
