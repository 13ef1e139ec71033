"""DSG-Video_i and DSG-Video_s from the answers, with intervals (STIV, arXiv:2412.07730, appendix C.1, Table 11)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidlab.metrics.intervals import LEVEL, Interval

_NORMAL = 1.959964  # of the 0.975 quantile of the standard normal distribution


@dataclass(frozen=True)
class CheckedObject:
    """One object of a caption and what each asked frame showed.

    Args:
        name: as the caption calls it.
        answers: of the frames in the order in which they were asked: yes, no, or None where the answer was neither.
    """

    name: str
    answers: tuple[bool | None, ...]

    @property
    def state(self) -> str:
        """``seen`` in a frame, ``hallucinated`` where every frame says no, else ``undecided``."""
        if True in self.answers:
            return "seen"
        return "undecided" if None in self.answers or not self.answers else "hallucinated"


@dataclass(frozen=True)
class CheckedCaption:
    """A caption and its objects; None where the language model's list of them could not be read.

    Args:
        key: of the clip.
        caption: the text.
        objects: each once.
        reason: why there are none.
    """

    key: str
    caption: str
    objects: tuple[CheckedObject, ...] | None
    reason: str = ""

    def count(self, state: str) -> int:
        """How many objects are in a state."""
        return sum(one.state == state for one in self.objects or ())

    @property
    def decided(self) -> int:
        """Objects that are seen or hallucinated."""
        return self.count("seen") + self.count("hallucinated")

    @property
    def hallucinates(self) -> bool | None:
        """Whether an object is hallucinated; None where that is not known."""
        if self.objects is None:
            return None
        if self.count("hallucinated"):
            return True
        return None if self.count("undecided") else False


@dataclass(frozen=True)
class Rate:
    """A percentage of things that were counted, with its 95 % interval; None of nothing."""

    percent: float | None
    interval: Interval | None
    hits: int
    total: int

    def __str__(self) -> str:
        if self.percent is None:
            return "-"
        low, high = (self.interval.low, self.interval.high) if self.interval else (math.nan, math.nan)
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}]"


@dataclass(frozen=True)
class DSGScores:
    """The scores of one captioner; lower is better.

    An object is hallucinated where no frame shows it. Objects on which an answer could be neither yes nor no, and which
    no frame shows, are undecided: they are counted apart and in neither score.

    Args:
        captions: that were checked.
        objects: total objects that are seen or hallucinated.
        per_object: DSG-Video_i, 100 x hallucinated objects / objects. Its interval is Wilson's with the effective
            number of objects, since those of one caption are alike.
        per_caption: DSG-Video_s, 100 x captions with a hallucinated object / captions of which that is known.
        undecided: objects that are neither.
        unread_answers: answers of the multimodal model that were neither yes nor no.
        unread_captions: captions whose list of objects could not be read.
    """

    captions: int
    objects: int
    per_object: Rate
    per_caption: Rate
    undecided: int
    unread_answers: int
    unread_captions: int


def dsg_scores(checked: Sequence[CheckedCaption]) -> DSGScores:
    """The scores of some captions."""
    hits = [one.count("hallucinated") for one in checked]
    sizes = [one.decided for one in checked]
    known = [one.hallucinates for one in checked if one.hallucinates is not None]
    objects = [seen for one in checked for seen in one.objects or ()]
    return DSGScores(
        captions=len(checked),
        objects=sum(sizes),
        per_object=object_rate(hits, sizes),
        per_caption=_rate(sum(known), len(known), len(known), "Wilson"),
        undecided=sum(one.count("undecided") for one in checked),
        unread_answers=sum(answer is None for one in objects for answer in one.answers),
        unread_captions=sum(one.objects is None for one in checked),
    )


def wilson(share: float, number: float) -> tuple[float, float]:
    """Wilson's (1927) 95 % interval of a share of ``number`` draws; ``number`` need not be whole."""
    square = _NORMAL**2 / number
    middle = (share + square / 2) / (1 + square)
    half = _NORMAL / (1 + square) * math.sqrt(share * (1 - share) / number + square / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)


def object_rate(hits: Sequence[int], sizes: Sequence[int]) -> Rate:
    """A share of objects that come in captions, which are what was drawn (Korn and Graubard 1998).

    The number of objects is divided by the design effect, the variance of the ratio over captions against that of as
    many objects drawn one by one, where it is above 1.

    Args:
        hits: of each caption.
        sizes: objects of each caption.
    """
    total, hit = sum(sizes), sum(hits)
    if not total:
        return Rate(None, None, 0, 0)
    share, number = hit / total, float(total)
    used = [(one, size) for one, size in zip(hits, sizes, strict=True) if size]
    if 0 < hit < total and len(used) > 1:
        rest = np.array([one - share * size for one, size in used])  # sums to 0
        variance = len(used) / (len(used) - 1) * float((rest**2).sum()) / total**2
        number = total / max(1.0, variance / (share * (1 - share) / total))
    return _rate(hit, total, number, "Wilson with the effective number of objects")


def _rate(hits: int, total: int, number: float, method: str) -> Rate:
    if not total:
        return Rate(None, None, 0, 0)
    low, high = wilson(hits / total, number)
    return Rate(100 * hits / total, Interval(100 * low, 100 * high, LEVEL, method), hits, total)
