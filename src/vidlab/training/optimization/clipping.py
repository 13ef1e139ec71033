"""Adaptive gradient clipping: which gradients of a step are outliers, by the running statistics of gradient norms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.errors import UserError
from vidlab.parallel.shards import is_shard, total_norm

VARIANTS = ("released", "paper")

Number = Float[Tensor, ""]


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
class DeviceStatistics:
    """``NormStatistics`` in float64 on the device of the gradients.

    Args:
        ema: moving mean; not a number before the first finite norm.
        variance: moving variance; likewise.
        updates: how often they have been updated.
    """

    ema: Number
    variance: Number
    updates: Int[Tensor, ""]

    @classmethod
    def of(cls, known: NormStatistics, device: torch.device | str) -> "DeviceStatistics":
        """The statistics, on a device."""
        ema, variance = (math.nan if one is None else one for one in (known.ema, known.variance))
        numbers = [torch.tensor(one, dtype=torch.float64, device=device) for one in (ema, variance)]
        return cls(numbers[0], numbers[1], torch.tensor(known.updates, device=device))

    def read(self) -> NormStatistics:
        """The statistics for the host, which waits for the device."""
        ema, variance, updates = torch.stack([self.ema, self.variance, self.updates.double()]).tolist()
        if math.isnan(ema):
            return NormStatistics(updates=int(updates))
        return NormStatistics(ema, variance, int(updates))


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
class DeviceDecision:
    """``ClipDecision`` on the device of the gradients.

    Args:
        kept: which ranks' gradients are not abnormal.
        multipliers: factor of each rank's gradient before ranks are averaged; 0 for an abnormal one.
        norms: the gradient norm of each rank.
        threshold: finite norms above it are abnormal; infinite where only non-finite ones are.
        max_norm: the largest finite norm; 0 without one.
        processed_max: the largest norm of a rank that is not abnormal, before rescaling; 0 without one.
        deviation: (max_norm - ema)^2, with the updated ema; 0 before the first finite norm.
        statistics: the statistics after this step.
    """

    kept: Bool[Tensor, "N"]
    multipliers: Float[Tensor, "N"]
    norms: Float[Tensor, "N"]
    threshold: Number
    max_norm: Number
    processed_max: Number
    deviation: Number
    statistics: DeviceStatistics

    @property
    def skip(self) -> Bool[Tensor, ""]:
        """Whether no rank is left, so that the step must not be taken at all."""
        return ~self.kept.any()

    def read(self) -> ClipDecision:
        """The decision for the host, which waits for the device."""
        return ClipDecision(
            multipliers=tuple(self.multipliers.tolist()),
            abnormal=tuple(rank for rank, kept in enumerate(self.kept.tolist()) if not kept),
            norms=tuple(self.norms.tolist()),
            threshold=self.threshold.item(),
            max_norm=self.max_norm.item(),
            processed_max=self.processed_max.item(),
            deviation=self.deviation.item(),
            statistics=self.statistics.read(),
        )


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
        """Judge one step by the gradient norms of all ranks, in their order, for the host."""
        known = torch.tensor(norms, dtype=torch.float64)
        return self.decide_on_device(DeviceStatistics.of(before, "cpu"), known).read()

    def decide_on_device(self, before: DeviceStatistics, norms: Float[Tensor, "N"]) -> DeviceDecision:
        """Judge one step where its gradients are; the host reads nothing and waits for nobody.

        Args:
            before: the statistics before this step.
            norms: (N,) of the gradients of all ranks, in their order, on the device of the statistics.
        """
        norms = norms.double()
        warm = before.ema.isfinite() & (before.updates >= self.warmup_steps)
        threshold = torch.where(warm, before.ema + self.sigmas * before.variance.sqrt(), math.inf)
        finite = norms.isfinite()
        kept = finite & (norms <= threshold)  # eq. 24
        after = self._updated(before, norms, finite, kept)
        max_norm, normal = _largest(norms, finite), kept.sum(dtype=torch.float64)
        return DeviceDecision(
            kept=kept,
            multipliers=torch.where(kept, torch.full_like(normal, len(norms)) / normal, 0.0),  # eq. 26, M of eq. 25
            norms=norms,
            threshold=threshold,
            max_norm=max_norm,
            processed_max=_largest(norms, kept),
            deviation=torch.where(after.ema.isnan(), 0.0, (max_norm - after.ema).square()),
            statistics=after,
        )

    def _updated(
        self, before: DeviceStatistics, norms: Float[Tensor, "N"], finite: Bool[Tensor, "N"], kept: Bool[Tensor, "N"]
    ) -> DeviceStatistics:
        counted = finite if self.variant == "paper" else kept
        largest = _largest(norms, counted)  # eq. 21
        fresh, still = before.ema.isnan(), ~counted.any()
        if self.variant == "released":
            still = still | (~fresh & ((~kept).sum() > 1))
        ema = self.alpha * before.ema + (1 - self.alpha) * largest  # eq. 22
        variance = self.alpha * before.variance + (1 - self.alpha) * (largest - ema).square()  # eq. 23
        return DeviceStatistics(
            torch.where(still, before.ema, torch.where(fresh, largest, ema)),
            torch.where(still, before.variance, torch.where(fresh, largest, variance)),
            before.updates + ~still,
        )


def _largest(norms: Float[Tensor, "N"], among: Bool[Tensor, "N"]) -> Number:
    return torch.where(among, norms, 0.0).amax()


def global_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all gradients together, in float32; 0 of none."""
    if not gradients:
        return torch.zeros(())
    if any(map(is_shard, gradients)):
        return total_norm(gradients).float()
    norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))
