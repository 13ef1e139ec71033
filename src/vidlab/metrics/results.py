"""What a metric answers: a value with everything it depends on, and differences of two such values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidlab.errors import UserError
from vidlab.metrics.intervals import Interval, bootstrap_mean


@dataclass(frozen=True)
class Floor:
    """What a distance between sets measures on two disjoint parts of the reference set, where the truth is zero.

    Args:
        value: mean over several random splits.
        clips: the number of clips in each part.
        splits: the number of splits.
    """

    value: float
    clips: int
    splits: int


@dataclass(frozen=True)
class MetricResult:
    """A value, how certain it is, and what it was measured with.

    Args:
        name: of the metric.
        value: in the metric's unit.
        higher_is_better: None where neither direction is better.
        clips: the number N of clips.
        reference_clips: the number of reference clips; None for metrics without a reference.
        frames: frames scored per clip.
        stride: given frames per scored frame.
        resolution: height and width of the clips as given.
        resize: the filter and the size the clips were brought to, ``none`` if they were scored as given.
        settings: all other settings that change the value, by name.
        interval: the confidence interval; None where there are too few clips to give one.
        floor: for distances between sets, what sampling alone makes of them.
        notes: what a reader of the value must know.
        keys: one number per clip, in growing order, for metrics that score single clips.
        scores: the clips' scores, in the order of ``keys``. Their mean is ``value``.
    """

    name: str
    value: float
    higher_is_better: bool | None
    clips: int
    reference_clips: int | None
    frames: int
    stride: int
    resolution: tuple[int, int]
    resize: str
    settings: Mapping[str, str] = field(default_factory=dict)
    interval: Interval | None = None
    floor: Floor | None = None
    notes: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    def conditions(self) -> dict[str, Any]:
        """Everything that must agree for two values to be comparable, by name."""
        return {
            "metric": self.name,
            "N": self.clips,
            "reference clips": self.reference_clips,
            "frames": self.frames,
            "stride": self.stride,
            "resolution": f"{self.resolution[0]} x {self.resolution[1]}",
            "resize": self.resize,
            **self.settings,
        }

    def __str__(self) -> str:
        given = [
            f"{name} {value}" for name, value in self.conditions().items() if name != "metric" and value is not None
        ]
        text = f"{self.name} {self.value:.4g}"
        if self.interval is not None:
            text += f" [{self.interval.low:.4g}, {self.interval.high:.4g}]"
        if self.floor is not None:
            text += f", two parts of the reference at N {self.floor.clips}: {self.floor.value:.4g}"
        return "; ".join([f"{text} ({', '.join(given)})", *self.notes])


@dataclass(frozen=True)
class Difference:
    """The first value minus the second.

    Args:
        value: in the metric's unit.
        interval: of the difference; None if one of the values has none.
        p_value: two-sided, from the paired bootstrap; None for metrics of whole sets.
        paired: whether the clips were compared one by one.
    """

    value: float
    interval: Interval | None
    p_value: float | None
    paired: bool


def difference(first: MetricResult, second: MetricResult, resamples: int = 10_000, seed: int = 0) -> Difference:
    """The difference of two values of one metric.

    Scores of single clips are compared clip by clip where both results have the same keys (paired bootstrap over clips,
    Efron and Tibshirani 1993, chapter 16), which removes the variation between prompts. Values of whole sets get an
    interval from both of theirs, taken as independent.

    Raises:
        UserError: the values were not measured under the same conditions, N included.
    """
    mine, other = first.conditions(), second.conditions()
    wrong = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    if wrong:
        told = ", ".join(f"{name} {mine.get(name)} and {other.get(name)}" for name in wrong)
        raise UserError(f"{first.name}: these values cannot be compared, they differ in {told}. Measure both alike.")
    value = first.value - second.value
    if first.keys and first.keys == second.keys:
        pairs = [a - b for a, b in zip(first.scores, second.scores, strict=True)]
        found = bootstrap_mean(pairs, resamples, seed=seed)
        return Difference(value, found.interval, found.p_value, paired=True)
    interval = None
    if first.interval is not None and second.interval is not None:
        half = math.hypot(first.interval.half_width, second.interval.half_width)
        interval = Interval(value - half, value + half, first.interval.level, "both intervals, taken as independent")
    return Difference(value, interval, None, paired=False)
