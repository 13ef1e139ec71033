"""Loss against compute or size as a power law: straight lines in logarithms, fitted with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vidlab.lab.compare.comparison import ConfigurationRow
from vidlab.lab.compare.measures import Measure
from vidlab.metrics.intervals import LEVEL, Interval

SCALE, BUDGET = "model.scale", "budget.value"
SIZES = {"flops": "FLOPs", "parameters": "parameters at equal FLOPs"}
EQUAL = 1.25  # FLOPs of runs with one budget differ by a step at most, those of sizes by the square of the scale


@dataclass(frozen=True)
class PowerLaw:
    """``value = factor * compute ** exponent``; of size in place of compute likewise.

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


@dataclass(frozen=True)
class SizeFit:
    """What a metric does with size or compute, of configurations that differ in nothing else.

    Args:
        name: the settings that they share and others do not; ``all`` where there are none.
        axis: ``flops``, or ``parameters`` where all sizes had one budget of FLOPs.
        law: the fit, of which every run is a point.
        first: the first of these configurations, whose color the line has.
    """

    name: str
    axis: str
    law: PowerLaw
    first: ConfigurationRow


def size_fits(rows: Sequence[ConfigurationRow], measure: Measure) -> list[SizeFit]:
    """A power law for every family of configurations that differ in ``model.scale`` or ``budget.value`` alone.

    Against FLOPs, where sizes or budgets differ in them. Sizes of one budget of FLOPs do not, so there the metric is
    fitted against parameters. Where sizes were trained with several budgets of FLOPs each, the best size of
    each budget counts, as on the compute-optimal frontier (Hoffmann et al. 2022, approach 1).
    """
    families: dict[str, list[ConfigurationRow]] = {}
    for row in rows:
        if row.settings.keys() & {SCALE, BUDGET} and measure.key in row.means:
            rest = " ".join(f"{key}={value}" for key, value in row.settings.items() if key not in (SCALE, BUDGET))
            families.setdefault(rest or "all", []).append(row)
    fits = (_fit(name, members, measure) for name, members in families.items())
    return [fit for fit in fits if fit is not None]


def _fit(name: str, members: Sequence[ConfigurationRow], measure: Measure) -> SizeFit | None:
    budgets: dict[str, list[ConfigurationRow]] = {}
    for row in members:
        budgets.setdefault(row.settings.get(BUDGET, ""), []).append(row)
    equal = all(_flops_are_equal(rows) for rows in budgets.values())
    axis = "parameters" if equal and len(budgets) == 1 else "flops"
    kept = [_best(rows, measure) for rows in budgets.values()] if equal and len(budgets) > 1 else members
    points = [
        (run.parameters if axis == "parameters" else run.work.flops, run.curves[measure.key].last)
        for row in kept
        for run in row.runs.values()
        if measure.key in run.curves
    ]
    law = fit_power_law([(size or 0.0, value) for size, value in points])
    return None if law is None else SizeFit(name, axis, law, members[0])


def _flops_are_equal(rows: Sequence[ConfigurationRow]) -> bool:
    """Whether configurations cost the same but for a step more or less; not known is not equal."""
    costs = [row.costs.get("flops", 0.0) for row in rows]
    return min(costs) > 0 and max(costs) < EQUAL * min(costs)


def _best(rows: Sequence[ConfigurationRow], measure: Measure) -> ConfigurationRow:
    sign = -1 if measure.higher_is_better else 1
    finite = [row for row in rows if row.is_finite(measure.key)]
    return min(finite or rows, key=lambda row: sign * row.means[measure.key].value)
