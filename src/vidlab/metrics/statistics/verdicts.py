"""What is said about pairs of configurations, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vidlab.metrics.statistics.power import LEVEL
from vidlab.metrics.statistics.tests import SeedTest

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
        ...

    @property
    def text(self) -> str:
        """The verdict as one clause, such as ``no difference shown; one below 0.02 would not have been seen with 2 seeds``."""
        ...


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
    ...
