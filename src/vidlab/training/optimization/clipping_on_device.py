"""Adaptive gradient clipping decided where the gradients are, so that nobody waits for their norms."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.training.optimization.clipping import AdaptiveClipper, NormStatistics

Number = Float[Tensor, ""]


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


def decided(clipper: AdaptiveClipper, before: DeviceStatistics, norms: Float[Tensor, "N"]) -> DeviceDecision:
    """What ``AdaptiveClipper.decide`` decides, without a number that the host reads.

    On a CPU bit for bit, but for the last bit of a threshold in float64, whose root is rounded otherwise.

    Args:
        clipper: the rule.
        before: the statistics before this step.
        norms: of the gradients of all ranks, in their order.
    """
    norms = norms.double()
    warm = before.ema.isfinite() & (before.updates >= clipper.warmup_steps)
    threshold = torch.where(warm, before.ema + clipper.sigmas * before.variance.sqrt(), math.inf)
    finite = norms.isfinite()
    kept = finite & (norms <= threshold)  # eq. 24
    after = _updated(clipper, before, norms, finite, kept)
    max_norm, normal = _largest(norms, finite), kept.sum(dtype=torch.float64)
    return DeviceDecision(
        kept=kept,
        multipliers=torch.where(kept, torch.full_like(normal, len(norms)) / normal, 0.0),  # eq. 26, with M of eq. 25
        norms=norms,
        threshold=threshold,
        max_norm=max_norm,
        processed_max=_largest(norms, kept),
        deviation=torch.where(after.ema.isnan(), 0.0, (max_norm - after.ema).square()),
        statistics=after,
    )


def _largest(norms: Float[Tensor, "N"], among: Bool[Tensor, "N"]) -> Number:
    return torch.where(among, norms, 0.0).amax()


def _updated(
    clipper: AdaptiveClipper,
    before: DeviceStatistics,
    norms: Float[Tensor, "N"],
    finite: Bool[Tensor, "N"],
    kept: Bool[Tensor, "N"],
) -> DeviceStatistics:
    counted = finite if clipper.variant == "paper" else kept
    largest = _largest(norms, counted)  # eq. 21
    fresh, still = before.ema.isnan(), ~counted.any()
    if clipper.variant == "released":
        still = still | (~fresh & ((~kept).sum() > 1))
    ema = clipper.alpha * before.ema + (1 - clipper.alpha) * largest  # eq. 22
    variance = clipper.alpha * before.variance + (1 - clipper.alpha) * (largest - ema).square()  # eq. 23
    return DeviceStatistics(
        torch.where(still, before.ema, torch.where(fresh, largest, ema)),
        torch.where(still, before.variance, torch.where(fresh, largest, variance)),
        before.updates + ~still,
    )
