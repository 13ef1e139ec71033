"""Which gradients of a step are outliers, by the running statistics of gradient norms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError
from vidlab.parallel.shards import is_shard, total_norm

VARIANTS = ("released", "paper")


@dataclass(frozen=True)
class NormStatistics:
    """Running statistics of the largest gradient norm of a step.

    Args:
        ema: moving mean; None before the first finite norm.
        variance: moving variance; None likewise.
        updates: how often they have been updated.
    """

    ema: float | None = None
    variance: float | None = None
    updates: int = 0


@dataclass(frozen=True)
class ClipDecision:
    """What becomes of the gradients of one step.

    Args:
        multipliers: factor of each rank's gradient before ranks are averaged: 0 for an abnormal one, N / M for the M
            others of N.
        abnormal: numbers of the abnormal ranks.
        norms: the gradient norm of each rank, as it was given.
        threshold: finite norms above it are abnormal; infinite where only non-finite ones are.
        max_norm: the largest finite norm; 0 without one.
        processed_max: the largest norm of a rank that is not abnormal, before rescaling; 0 without one.
        deviation: (max_norm - ema)^2, with the updated ema; 0 before the first finite norm.
        statistics: the statistics after this step.
    """

    multipliers: tuple[float, ...]
    abnormal: tuple[int, ...]
    norms: tuple[float, ...]
    threshold: float
    max_norm: float
    processed_max: float
    deviation: float
    statistics: NormStatistics

    @property
    def skip(self) -> bool:
        """Whether no rank is left, so that the step must not be taken at all."""
        return len(self.abnormal) == len(self.norms)


@dataclass(frozen=True)
class AdaptiveClipper:
    """Adaptive gradient clipping (Lin et al. 2024, Open-Sora Plan, section 3.2): outliers by the 3-sigma rule.

    A rank whose norm exceeds ema + sigmas * sqrt(variance), as they were before this step, is abnormal (eq. 24). Its
    gradient becomes 0, and those of the M other ranks of N are multiplied by N / M (eq. 26), so that the average over
    all ranks is the mean of the others. The largest norm p of the step then updates

        ema <- alpha ema + (1 - alpha) p                            (eq. 22)
        variance <- alpha variance + (1 - alpha) (p - ema)^2        (eq. 23, with the updated ema)

    ``variant="paper"`` takes p from eq. 21 literally: the largest norm of all ranks, abnormal ones too.
    ``variant="released"`` follows the code of the authors' branches: p is the largest norm that is not abnormal, and
    while more than one rank is abnormal both statistics stand still.

    Where the sources are silent: both variants begin with ema = variance = the first largest norm, as the released
    code does, and the first step has no threshold. A norm that is infinite or not a number is abnormal from the first
    step on and enters no statistic. A step that leaves p undefined changes no statistic.

    Args:
        variant: "released" or "paper".
        alpha: share of the old statistics that each step keeps.
        sigmas: standard deviations above the mean at which a norm becomes abnormal.
        warmup_steps: updates of the statistics before a finite norm can be abnormal.

    Raises:
        UserError: a setting out of range.
    """

    variant: str = "released"
    alpha: float = 0.99
    sigmas: float = 3.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        at = "callbacks.adaptive_clipping"
        if self.variant not in VARIANTS:
            raise UserError(f"{at}.variant={self.variant} must be one of {', '.join(VARIANTS)}.")
        if not 0 <= self.alpha < 1:
            raise UserError(f"{at}.alpha={self.alpha} must lie in [0, 1).")
        if not 0 < self.sigmas < math.inf:
            raise UserError(f"{at}.sigmas={self.sigmas} must be positive and finite.")
        if self.warmup_steps < 0:
            raise UserError(f"{at}.warmup_steps={self.warmup_steps} must not be negative.")

    def decide(self, before: NormStatistics, norms: Sequence[float]) -> ClipDecision:
        """Judge one step by the gradient norms of all ranks, in their order."""
        threshold = self.threshold(before)
        kept = [math.isfinite(norm) and norm <= threshold for norm in norms]  # eq. 24
        finite = [norm for norm in norms if math.isfinite(norm)]
        normal = [norm for norm, keep in zip(norms, kept, strict=True) if keep]
        after = self._updated(before, finite, normal, len(norms) - len(normal))
        max_norm = max(finite, default=0.0)
        return ClipDecision(
            multipliers=tuple(len(norms) / len(normal) if keep else 0.0 for keep in kept),  # eq. 26, with M of eq. 25
            abnormal=tuple(rank for rank, keep in enumerate(kept) if not keep),
            norms=tuple(norms),
            threshold=threshold,
            max_norm=max_norm,
            processed_max=max(normal, default=0.0),
            deviation=0.0 if after.ema is None else _square(max_norm - after.ema),
            statistics=after,
        )

    def threshold(self, statistics: NormStatistics) -> float:
        """The largest norm that is not abnormal."""
        ema, variance = statistics.ema, statistics.variance
        if ema is None or variance is None or statistics.updates < self.warmup_steps:
            return math.inf
        return ema + self.sigmas * math.sqrt(variance)

    def _updated(
        self, before: NormStatistics, finite: list[float], normal: list[float], abnormal: int
    ) -> NormStatistics:
        counted = finite if self.variant == "paper" else normal
        if not counted:
            return before
        largest = max(counted)  # eq. 21
        if before.ema is None or before.variance is None:
            return NormStatistics(largest, largest, 1)
        if self.variant == "released" and abnormal > 1:
            return before
        ema = self.alpha * before.ema + (1 - self.alpha) * largest  # eq. 22
        variance = self.alpha * before.variance + (1 - self.alpha) * _square(largest - ema)  # eq. 23
        return NormStatistics(ema, variance, before.updates + 1)


def _square(x: float) -> float:
    return x * x  # rounded once, as on every device; x**2 is not always


def global_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all gradients together, in float32; 0 of none."""
    if not gradients:
        return torch.zeros(())
    if any(map(is_shard, gradients)):
        return total_norm(gradients).float()
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))
