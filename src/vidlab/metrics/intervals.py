"""Confidence intervals over clips: the clip is the unit that was drawn, never the frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlab.randomness import generator

LEVEL = 0.95
_NUMBERS = 1 << 18  # drawn at once
_NORMAL = 1.959964  # of the 0.975 quantile of the standard normal distribution


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Args:
        low, high: its ends.
        level: its nominal coverage.
        method: how it was made.
    """

    low: float
    high: float
    level: float
    method: str

    @property
    def half_width(self) -> float:
        """Half the distance of its ends."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Bootstrap:
    """The interval of a mean, and the two-sided probability of a mean this far from zero if zero were true."""

    interval: Interval | None
    p_value: float | None


def bootstrap_mean(scores: Sequence[float], resamples: int = 1000, level: float = LEVEL, seed: int = 0) -> Bootstrap:
    """Percentile bootstrap of a mean over clips (Efron and Tibshirani 1993, chapter 13).

    Args:
        scores: one per clip. With fewer than 2, or with infinite ones, there is no interval.
        resamples: how often N clips are drawn with replacement.
        level: nominal coverage.
        seed: of the draws.
    """
    values = torch.tensor(scores, dtype=torch.float64)
    if len(values) < 2 or not values.isfinite().all():
        return Bootstrap(None, None)
    draws = generator("bootstrap", seed)
    # Some resamples at a time: all at once would take resamples x N numbers.
    rows = max(1, _NUMBERS // len(values))
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    picks = (torch.randint(len(values), (size, len(values)), generator=draws) for size in sizes)
    means = torch.cat([values[pick].mean(1) for pick in picks])
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    beyond = min((means <= 0).double().mean().item(), (means >= 0).double().mean().item())
    # Of a finite number of resamples no probability smaller than one in that many can be told.
    p_value = min(1.0, 2 * max(beyond, 1 / resamples))
    return Bootstrap(Interval(low, high, level, f"bootstrap over clips, {resamples} resamples"), p_value)


def subsampled(
    statistic: Callable[[Tensor, Tensor], float], value: float, clips: int, references: int, draws: int, seed: int = 0
) -> Interval | None:
    """The 95 % interval of a statistic of two sets, from halves drawn without replacement.

    A bootstrap would put clips into a set twice, which narrows the set and biases distances upwards. The values on
    halves of both sets spread about as much as the values on whole sets drawn anew would (the delete-half jackknife:
    drawing n/2 of n without replacement has variance (1 - 1/2) / (n/2) = 1/n; Shao and Wu 1989). Only this spread is
    taken: their mean is larger than the value of the whole sets, since such distances fall with N.

    Args:
        statistic: of the indices of some clips and of some reference clips.
        value: the statistic of the whole sets, the center of the interval.
        clips, references: the sizes of the sets; with fewer than 4 in one of them there is no interval.
        draws: how many halves are drawn; with fewer than 2 there is no interval.
        seed: of the draws.
    """
    if min(clips, references) < 4 or draws < 2:
        return None
    made = generator("subsample", seed)
    values = [
        statistic(
            torch.randperm(clips, generator=made)[: clips // 2],
            torch.randperm(references, generator=made)[: references // 2],
        )
        for _ in range(draws)
    ]
    half = _NORMAL * torch.tensor(values, dtype=torch.float64).std().item()
    if not math.isfinite(half):
        return None
    return Interval(value - half, value + half, LEVEL, f"spread of {draws} halves drawn without replacement")
