"""Two captioners on the same clips, as in STIV's Table 11."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidlab.metrics.dsg.scores import CheckedCaption, DSGScores, dsg_scores
from vidlab.metrics.intervals import LEVEL, Interval
from vidlab.randomness import seed_of

RESAMPLES = 2000
HEADER = "| captions by | total objects | DSG-Video_i | DSG-Video_s | undecided | unread answers | unread captions |"


@dataclass(frozen=True)
class Difference:
    """Second captioner minus first, in points of percent; below 0 the second hallucinates less.

    Args:
        name: of the score.
        value: None where one of them has nothing to count.
        interval: from clips drawn anew, both captioners' captions of a clip together.
    """

    name: str
    value: float | None
    interval: Interval | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def differences(
    first: Sequence[CheckedCaption], second: Sequence[CheckedCaption], resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """The paired differences of both scores over the clips that both have.

    Args:
        first, second: checked captions of two captioners.
        resamples: of the percentile bootstrap over clips (Efron and Tibshirani 1993, chapter 13).
        seed: of its draws.
    """
    others = {one.key: one for one in second}
    pairs = [(one, others[one.key]) for one in first if one.key in others]
    draws = np.random.default_rng(seed_of(seed, "dsg", "bootstrap"))
    picks = draws.integers(len(pairs), size=(resamples, len(pairs))) if pairs else np.empty((0, 0), np.int64)
    return [
        _difference("DSG-Video_i", np.array([[_objects(one) for one in pair] for pair in pairs]), picks),
        _difference("DSG-Video_s", np.array([[_captions(one) for one in pair] for pair in pairs]), picks),
    ]


def _objects(one: CheckedCaption) -> tuple[int, int]:
    return one.count("hallucinated"), one.decided


def _captions(one: CheckedCaption) -> tuple[int, int]:
    return int(bool(one.hallucinates)), int(one.hallucinates is not None)


def _difference(name: str, counts: np.ndarray, picks: np.ndarray) -> Difference:
    """Of ratios of sums; ``counts`` (clips, 2 captioners, [hits, total])."""
    if not len(counts) or not counts.sum(0)[:, 1].all():
        return Difference(name, None, None)
    sums = counts.sum(0)
    value = 100 * float(sums[1, 0] / sums[1, 1] - sums[0, 0] / sums[0, 1])
    drawn = counts[picks].sum(1).astype(np.float64)  # (resamples, 2, 2)
    drawn = drawn[(drawn[..., 1] > 0).all(1)]
    if len(counts) < 2 or not len(drawn):
        return Difference(name, value, None)
    found = 100 * (drawn[:, 1, 0] / drawn[:, 1, 1] - drawn[:, 0, 0] / drawn[:, 0, 1])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Difference(name, value, Interval(low, high, LEVEL, f"paired bootstrap over clips, {len(picks)} resamples"))


def table_of(checked: Mapping[str, Sequence[CheckedCaption]]) -> str:
    """A Markdown table with a row for each captioner, percentages with their 95 % intervals."""
    lines = [HEADER, "|" + "---|" * 7]
    return "\n".join(lines + [_row(name, dsg_scores(captions)) for name, captions in checked.items()])


def _row(name: str, scores: DSGScores) -> str:
    cells = [name.replace("|", "\\|"), scores.objects, scores.per_object, scores.per_caption, scores.undecided]
    return "| " + " | ".join(map(str, [*cells, scores.unread_answers, scores.unread_captions])) + " |"
