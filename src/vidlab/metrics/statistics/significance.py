"""Tests of a difference between two configurations over their seeds, and Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np
from scipy import stats

from vidlab.metrics.intervals import LEVEL, Interval

Kind = Literal["paired", "unpaired"]
Pair = tuple[tuple[int, ...], tuple[int, ...]]
ROUNDING = 1e-12
DRAWS = 10_000


@dataclass(frozen=True)
class SeedTest:
    """The first configuration against the second in one metric.

    Args:
        kind: ``paired`` over common seeds, or ``unpaired`` over the seeds of each (Welch).
        seeds: of the runs that were compared, of the first and of the second configuration.
        difference: mean of the first minus mean of the second.
        interval: of the difference, Student's t.
        p_value: two-sided, of the t test; of the exact test where the differences do not vary.
        p_exact: two-sided, of the exact test (signs flipped, or runs exchanged), which assumes no distribution.
        least_exact: the smallest value that ``p_exact`` can take with as many seeds: 2 of 2^n cases.
        std_error: of the difference.
        freedom: degrees of freedom.
    """

    kind: Kind
    seeds: Pair
    difference: float
    interval: Interval
    p_value: float
    p_exact: float
    least_exact: float
    std_error: float
    freedom: float


def seed_test(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> SeedTest | None:
    """The test that the seeds of two configurations allow.

    With 2 common seeds or more it is ``paired_test`` over these: runs of one seed saw the same clips in the same order
    with the same noise, and what these make of a run falls out of the difference. Without, it is ``unpaired_test``
    where each has 2 seeds, and None otherwise: from one run nobody knows how much another would differ.

    Args:
        first, second: values by seed, all finite.
        level: nominal coverage of the interval.
    """
    if len(first.keys() & second.keys()) >= 2:
        return paired_test(first, second, level)
    return unpaired_test(first, second, level) if min(len(first), len(second)) >= 2 else None


def paired_test(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> SeedTest:
    """Student's t test of the differences over common seeds, with the exact sign-flip test (Fisher 1935) beside it.

    Args:
        first, second: values by seed, with at least 2 seeds in common; others are left out.
        level: nominal coverage of the interval.
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    values = np.array([first[seed] - second[seed] for seed in seeds])
    error = float(values.std(ddof=1)) / math.sqrt(len(seeds))
    size = max(abs(one[seed]) for one in (first, second) for seed in seeds)
    exact, least = _sign_flips(values), 2.0 / 2 ** len(seeds)
    return _answer(
        "paired", (seeds, seeds), _Moments(float(values.mean()), error, len(seeds) - 1, size), exact, least, level
    )


def unpaired_test(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> SeedTest:
    """Welch's t test (1947), with the exact test of exchanged runs beside it.

    Args:
        first, second: values by seed, at least 2 each.
        level: nominal coverage of the interval.
    """
    x, y = np.array(list(first.values())), np.array(list(second.values()))
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    total = float(sum(parts))
    below = parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1)
    freedom = total**2 / float(below) if below > 0 else len(x) + len(y) - 2  # Welch and Satterthwaite
    size = float(max(np.abs(x).max(), np.abs(y).max()))
    # exchanging all runs mirrors a case where both have as many
    least = (2.0 if len(x) == len(y) else 1.0) / math.comb(len(x) + len(y), len(x))
    moments = _Moments(float(x.mean() - y.mean()), math.sqrt(total), freedom, size)
    return _answer("unpaired", (tuple(first), tuple(second)), moments, _exchanges(x, y), least, level)


@dataclass(frozen=True)
class _Moments:
    difference: float
    error: float
    freedom: float
    size: float  # of the values themselves, by which rounding is judged


def _answer(kind: Kind, seeds: Pair, moments: _Moments, exact: float, least: float, level: float) -> SeedTest:
    difference, error = moments.difference, moments.error
    half = float(stats.t.ppf((1 + level) / 2, moments.freedom)) * error
    if error <= ROUNDING * moments.size:  # equal differences: a t test would divide by nothing
        error, p_value = 0.0, exact
    else:
        p_value = float(2 * stats.t.sf(abs(difference) / error, moments.freedom))
    interval = Interval(difference - half, difference + half, level, f"Student's t, {kind} over seeds")
    return SeedTest(kind, seeds, difference, interval, p_value, exact, least, error, moments.freedom)


def _sign_flips(values: np.ndarray) -> float:
    """The share of signs, of all or of ``DRAWS`` random ones, under which the mean is as far from 0."""
    if len(values) <= 14:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))  # (2^n, n)
        return _share(np.abs(signs @ values), abs(values.sum()))
    signs = np.random.default_rng(0).choice((1.0, -1.0), size=(DRAWS, len(values)))
    return _share(np.append(np.abs(signs @ values), np.inf), abs(values.sum()))


def _exchanges(x: np.ndarray, y: np.ndarray) -> float:
    """The share of the ways to split the runs, of all or of ``DRAWS`` random ones, with means as far apart."""
    whole, n = np.concatenate([x, y]), len(x)
    if math.comb(len(whole), n) <= DRAWS:
        picks = np.array(list(combinations(range(len(whole)), n)))  # (ways, n)
    else:
        draws = np.random.default_rng(0).random((DRAWS, len(whole)))
        picks = np.concatenate([draws.argsort(axis=1)[:, :n], np.arange(n)[None]])  # what was observed is one of them
    first = whole[picks].sum(axis=1)
    apart = np.abs(first / n - (whole.sum() - first) / len(y))
    return _share(apart, abs(x.mean() - y.mean()))


def _share(cases: np.ndarray, observed: float) -> float:
    return float((cases >= observed * (1 - 1e-9)).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Step-down adjusted p-values (Holm 1979); entries without a p-value stay without and do not count."""
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (value, place) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        adjusted[place] = running
    return adjusted
