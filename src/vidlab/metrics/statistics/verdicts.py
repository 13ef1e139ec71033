"""What is said about pairs of configurations, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from vidlab.metrics.statistics.power import LEVEL, smallest_effect
from vidlab.metrics.statistics.significance import SeedTest, holm, seed_test

Outcome = Literal["better", "worse", "differs", "no difference shown", "one seed", "not comparable"]
ONE_SEED = "one seed: a ranking from one seed says nothing about another"


@dataclass(frozen=True)
class SeedScores:
    """One metric of several configurations.

    Args:
        metric: its name.
        higher_is_better: None where neither direction is better.
        values: by configuration and by seed, in the order of tables.
    """

    metric: str
    higher_is_better: bool | None
    values: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class PairVerdict:
    """One configuration against another in one metric.

    Args:
        metric: its name.
        first, second: the configurations; differences are first minus second.
        higher_is_better: None where neither direction is better.
        seeds: how many seeds of each were compared (common ones if paired).
        test: None with one seed.
        adjusted: the p-value after Holm's correction for all pairs and metrics that were given together.
        unseen: the smallest difference that as many seeds find with probability 80 % at a level of 5 %, one test alone.
        level: below which ``adjusted`` counts as shown.
        refused: why the two cannot be compared; empty if they can.
    """

    metric: str
    first: str
    second: str
    higher_is_better: bool | None
    seeds: tuple[int, int]
    test: SeedTest | None = None
    adjusted: float | None = None
    unseen: float | None = None
    level: float = LEVEL
    refused: str = ""

    @property
    def outcome(self) -> Outcome:
        """Of the first against the second."""
        if self.refused:
            return "not comparable"
        if self.test is None:
            return "one seed"
        if self.adjusted is None or self.adjusted >= self.level:
            return "no difference shown"
        if self.higher_is_better is None:
            return "differs"
        return "better" if (self.test.difference > 0) == self.higher_is_better else "worse"

    @property
    def text(self) -> str:
        """The verdict as a clause: ``A better than B``, or what was not shown and could not have been seen."""
        outcome = self.outcome
        if outcome == "not comparable":
            return f"not comparable: {self.refused}"
        if outcome == "one seed":
            return ONE_SEED
        if outcome == "no difference shown":
            limit = f"an effect below {self.unseen:.2g} would not have been seen with {_seeds(self.seeds)}"
            return f"{outcome}; {limit}" if self.unseen else outcome
        return f"{self.first} {'differs from' if outcome == 'differs' else outcome + ' than'} {self.second}"


def _seeds(counts: tuple[int, int]) -> str:
    return f"{counts[0]} seeds" if counts[0] == counts[1] else f"{counts[0]} and {counts[1]} seeds"


def compare_configurations(
    scores: Sequence[SeedScores], baseline: str | None = None, level: float = LEVEL
) -> tuple[PairVerdict, ...]:
    """Every configuration against the baseline, or every pair, in every metric, corrected together (Holm 1979).

    Args:
        scores: the metrics; name only those that the question is about, since each one costs power.
        baseline: the configuration that the others are compared with, as ``second``; None compares all pairs, later
            ones with earlier ones.
        level: below which an adjusted p-value counts as shown.
    """
    return corrected([
        compare_pair(one, first, second, level)
        for one in scores
        for first, second in _pairs(tuple(one.values), baseline)
    ])  # fmt: skip


def _pairs(names: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    if baseline is None:
        return [(later, earlier) for earlier, later in combinations(names, 2)]
    return [(name, baseline) for name in names if name != baseline] if baseline in names else []


def compare_pair(scores: SeedScores, first: str, second: str, level: float = LEVEL) -> PairVerdict:
    """One pair in one metric, not yet corrected for the others.

    Args:
        scores: of both configurations at least.
        first, second: their names.
        level: below which a p-value counts as shown.
    """
    mine, other = scores.values[first], scores.values[second]
    about = (scores.metric, first, second, scores.higher_is_better)
    counts = (len(mine), len(other))
    lost = [name for name, values in ((first, mine), (second, other)) if not all(map(math.isfinite, values.values()))]
    if lost:
        return PairVerdict(*about, counts, level=level, refused=f"a run of {' and of '.join(lost)} has no finite value")
    test = seed_test(mine, other)
    if test is None:
        return PairVerdict(*about, counts, level=level)
    counts = (len(test.seeds[0]), len(test.seeds[1]))
    unseen = smallest_effect(test.std_error, test.freedom)
    return PairVerdict(*about, counts, test, test.p_value, unseen, level)


def corrected(verdicts: Sequence[PairVerdict]) -> tuple[PairVerdict, ...]:
    """The verdicts with p-values adjusted for all of them (Holm 1979)."""
    adjusted = holm([one.test.p_value if one.test else None for one in verdicts])
    return tuple(replace(one, adjusted=value) for one, value in zip(verdicts, adjusted, strict=True))
