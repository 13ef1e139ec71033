"""Keeps clips by what was measured of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.stage import Decision, SharedDecision
from vidlab.errors import UserError


@dataclass(frozen=True)
class Range(Decision):
    """Keeps clips with a score in a range, both ends in it.

    Args:
        score: its name.
        least: None has no lower end.
        most: None has no upper end.

    Raises:
        UserError: the ends contradict each other, or a clip has no such score.
    """

    score: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if self.least is not None and self.most is not None and self.least > self.most:
            raise UserError(f"least={self.least} is above most={self.most} of {self.score}: nothing would be in.")

    @override
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        value = score_of(clip.scores, self.score, step)
        if self.least is not None and value < self.least:
            return [clip.rejected(step, f"{self.score} below {self.least:g}")]
        if self.most is not None and value > self.most:
            return [clip.rejected(step, f"{self.score} above {self.most:g}")]
        return [clip]


@dataclass(frozen=True)
class BestShare(SharedDecision):
    """Keeps a share of all clips, those with the highest scores.

    Args:
        score: its name.
        share: between 0 and 1, of the clips that are in before it.

    Raises:
        UserError: the share is out of range.
    """

    score: str
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share} of {self.score}: it must be above 0 and at most 1.")

    @property
    @override
    def gathers(self) -> str:
        return self.score

    @override
    def fitted(self, values: Sequence[float]) -> Decision:
        if not values:
            return Range(self.score)
        kept = max(1, round(self.share * len(values)))
        return Range(self.score, least=values[len(values) - kept])


def score_of(scores: Mapping[str, float], name: str, step: str) -> float:
    """One of the scores of a clip.

    Raises:
        UserError: nobody measured it.
    """
    if name not in scores:
        there = ", ".join(sorted(scores)) or "none"
        raise UserError(
            f"curation.{step}: no score {name!r} was measured before it (there are: {there}). Is its step null?"
        )
    return scores[name]
