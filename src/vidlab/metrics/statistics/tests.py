"""Tests of a difference between two configurations over their seeds, and Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from vidlab.metrics.intervals import LEVEL, Interval

Kind = Literal["paired", "unpaired"]


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
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
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
    with the same noise, and what these make of a run falls out of the difference. Without, it is ``unpaired_test`` where
    each has 2 seeds, and None otherwise: from one run nobody knows how much another would differ.

    Args:
        first, second: values by seed, all finite.
        level: nominal coverage of the interval.
    """
    ...


def paired_test(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> SeedTest:
    """Student's t test of the differences over common seeds, with the exact sign-flip test (Fisher 1935) beside it.

    Args:
        first, second: values by seed, with at least 2 seeds in common; others are left out.
        level: nominal coverage of the interval.
    """
    ...


def unpaired_test(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> SeedTest:
    """Welch's t test (1947), with the exact test of exchanged runs beside it.

    Args:
        first, second: values by seed, at least 2 each.
        level: nominal coverage of the interval.
    """
    ...


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Step-down adjusted p-values (Holm 1979); entries without a p-value stay without and do not count."""
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (value, place) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        adjusted[place] = running
    return adjusted
