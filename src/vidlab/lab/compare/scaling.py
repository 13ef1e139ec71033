"""Loss against compute as a power law: straight lines in logarithms, fitted with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vidlab.lab.compare.comparison import ConfigurationRow
from vidlab.metrics.intervals import LEVEL, Interval

SCALE = "model.scale"


@dataclass(frozen=True)
class PowerLaw:
    """``value = factor * compute ** exponent``.

    Args:
        exponent: the slope in logarithms.
        factor: the value at a compute of 1.
        interval: of the exponent (Student's t); None with fewer than 3 points, or points at 1 compute.
        points: (compute, value) that were fitted.
    """

    exponent: float
    factor: float
    interval: Interval | None
    points: tuple[tuple[float, float], ...]
    _spread: float = 0.0  # standard deviation of the residuals
    _level: float = LEVEL

    def at(self, compute: np.ndarray) -> np.ndarray:
        """The fitted values."""
        found: np.ndarray = self.factor * np.asarray(compute, dtype=np.float64) ** self.exponent
        return found

    def band(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The interval of the line at each compute, on its own (not of a new run); None where there is none."""
        if self.interval is None:
            return None
        x = np.log([point[0] for point in self.points])
        wide = stats.t.ppf((1 + self._level) / 2, len(x) - 2) * self._spread
        away = (np.log(compute) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        half = wide * np.sqrt(1 / len(x) + away)
        return self.at(compute) * np.exp(-half), self.at(compute) * np.exp(half)


def fit_power_law(points: Sequence[tuple[float, float]], level: float = LEVEL) -> PowerLaw | None:
    """Least squares of log(value) on log(compute), each run a point.

    The error is taken to be relative and equal for all runs. An irreducible loss is not fitted: over one decade of
    compute it cannot be told from the exponent.

    Args:
        points: compute and value, positive; others are left out.
        level: nominal coverage of the exponent's interval.

    Returns:
        None with fewer than 2 different values of compute.
    """
    kept = tuple((c, v) for c, v in points if c > 0 and v > 0 and math.isfinite(c) and math.isfinite(v))
    if len({c for c, _ in kept}) < 2:
        return None
    x, y = np.log(np.array(kept)).T
    centered = x - x.mean()
    slope = float(centered @ y / (centered @ centered))
    level_at = float(y.mean() - slope * x.mean())
    if len(kept) < 3:
        return PowerLaw(slope, math.exp(level_at), None, kept)
    spread = math.sqrt(float(((y - level_at - slope * x) ** 2).sum()) / (len(kept) - 2))
    half = float(stats.t.ppf((1 + level) / 2, len(kept) - 2)) * spread / math.sqrt(float(centered @ centered))
    interval = Interval(slope - half, slope + half, level, f"Student's t, {len(kept)} runs")
    return PowerLaw(slope, math.exp(level_at), interval, kept, spread, level)


def families(rows: Sequence[ConfigurationRow]) -> dict[str, list[ConfigurationRow]]:
    """Configurations that differ in ``model.scale`` alone, by the rest of their settings; none without sizes."""
    found: dict[str, list[ConfigurationRow]] = {}
    for row in rows:
        if SCALE in row.settings:
            rest = " ".join(f"{key}={value}" for key, value in row.settings.items() if key != SCALE)
            found.setdefault(rest or "all", []).append(row)
    return {name: members for name, members in found.items() if len(members) > 1}


def law_of(members: Sequence[ConfigurationRow], key: str, cost: str = "flops") -> PowerLaw | None:
    """The fit of a family: every run's last value of a metric against what it cost."""
    runs = [run for row in members for run in row.runs.values() if key in run.curves]
    return fit_power_law([(getattr(run.work, cost) or 0.0, run.curves[key].last) for run in runs])
