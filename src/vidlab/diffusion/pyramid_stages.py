"""The stages of pyramid flow: where each begins and ends, and how one is entered from the one before.

Pyramidal flow matching (Jin et al. 2024, arXiv 2410.05954) divides the way from noise to data into K stages of rising
resolution. ``r`` runs from 1 at the start of a stage to 0 at its end; sigma is the coefficient of the noise, that of
the paper's s_k and e_k being 1 - sigma.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.diffusion.pyramid_resolutions import block_means, block_noise, doubled
from vidlab.diffusion.schedules import over_latents
from vidlab.errors import UserError

Latents = Float[Tensor, "B C T H W"]


@dataclass(frozen=True)
class Jump:
    """How a stage is entered: z becomes ``alpha Up(z) + beta n'``, so that its distribution is that of the start.

    Args:
        alpha: 1 / (s (1 - e) + e) with s = sqrt(1 + 1/gamma), e = 1 - sigma_end of the stage before.
        beta: alpha (1 - e) / sqrt(gamma).
        gamma: minus the correlation of the new noise within a 2x2 block, in (0, 1/3].
    """

    alpha: float
    beta: float
    gamma: float

    def apply(self, latents: Latents, noise: Float[Tensor, "B C T two_H two_W"]) -> Float[Tensor, "B C T two_H two_W"]:
        """Latents of the finished stage at twice the resolution, with standard normal ``noise`` made blockwise."""
        return self.alpha * doubled(latents) + self.beta * block_noise(noise, self.gamma)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        sigma_start: share of noise at r = 1.
        sigma_end: share of noise at r = 0.
        t_start: the number embedded at r = 1.
        t_end: the number embedded at r = 0.
        jump: from the end of the stage before to the start of this; None for the first.
    """

    sigma_start: float
    sigma_end: float
    t_start: float
    t_end: float
    jump: Jump | None = None

    def embedded(self, r: Float[Tensor, "*r"]) -> Float[Tensor, "*r"]:
        """The number embedded for r, linear between the two ends."""
        return self.t_end + (self.t_start - self.t_end) * r

    def flow(self, latents: Latents, noise: Latents, coarser: Float[Tensor, "B C T half_H half_W"] | None) -> "Flow":
        """The piece of flow between both ends of the stage, which share their noise.

        Args:
            latents: clean, at the stage's resolution.
            noise: standard normal, of the same shape.
            coarser: clean, at the resolution of the stage before; None for the first stage.
        """
        known = 0.0 if coarser is None else (1 - self.sigma_start) * doubled(coarser)  # (B, C, T, H, W)
        return Flow(
            start=self.sigma_start * noise + known,
            end=self.sigma_end * noise + (1 - self.sigma_end) * latents,
        )

    def latents_of(self, end: Latents, noise: Latents) -> Latents:
        """Clean latents at the stage's resolution, given where its flow ends: (end - sigma_end n) / (1 - sigma_end)."""
        return (end - self.sigma_end * noise) / (1 - self.sigma_end)


@dataclass(frozen=True)
class Flow:
    """A straight line from ``start`` (r = 1) to ``end`` (r = 0)."""

    start: Latents
    end: Latents

    def at(self, r: Float[Tensor, "B"]) -> Latents:
        """r start + (1 - r) end."""
        wide = over_latents(r, self.start)  # (B, 1, 1, 1, 1)
        return wide * self.start + (1 - wide) * self.end

    @property
    def velocity(self) -> Latents:
        """dx/dr = start - end, the network's target."""
        return self.start - self.end


def noise_and_latents(
    start: Latents, end: Latents, sigma_start: Float[Tensor, "B 1 1 1 1"], sigma_end: Float[Tensor, "B 1 1 1 1"]
) -> tuple[Latents, Latents]:
    """The noise n and clean latents x whose flow has these ends, of which both are made.

    The coarser latents in the start are block means of x. So with P the mean over 2x2 blocks, start = sigma_s n +
    (1 - sigma_s) P x and end = sigma_e n + (1 - sigma_e) x are two equations for P n and P x, and n - P n is that of
    the start over sigma_s.

    Args:
        start: at r = 1.
        end: at r = 0.
        sigma_start, sigma_end: of the stage of each clip.
    """
    mean, mean_end = block_means(start), block_means(end)
    mean_noise = ((1 - sigma_start) * mean_end - (1 - sigma_end) * mean) / (sigma_end - sigma_start)
    noise = mean_noise + (start - mean) / sigma_start
    return noise, (end - sigma_end * noise) / (1 - sigma_end)


def stage_table(bounds: Sequence[float], steps: int = 1000, gamma: float = 1 / 3) -> tuple[Stage, ...]:
    """The stages, coarse to fine.

    Noise levels at the bounds are read off the grid (N, N - 1, ..., 1) / N, as the authors' code reads them; a later
    stage begins higher than the one before ended, by what its jump adds. The embedded numbers N to 1 are shared out
    by the length of the stages in sigma.

    Args:
        bounds: K + 1 rising numbers from 0 (noise) to 1 (data).
        steps: N.
        gamma: of the jumps.

    Raises:
        UserError: bounds that do not rise from 0 to 1, or gamma outside (0, 1/3].
    """
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != 1 or any(a >= b for a, b in pairwise(bounds)):
        raise UserError(f"objective: the bounds of the stages {list(bounds)} must rise from 0 to 1.")
    if not 0 < gamma <= 1 / 3:
        raise UserError(f"objective.gamma={gamma} must lie in (0, 1/3]: the noise of a block has no other covariance.")
    first, *ends = ((steps - int(bound * steps)) / steps for bound in bounds)
    jumps = [None, *(_jump(1 - end, gamma) for end in ends[:-1])]
    starts = [first, *(1 - jump.alpha * (1 - end) for jump, end in zip(jumps[1:], ends[:-1], strict=True) if jump)]
    passed = [0.0, *accumulate(start - end for start, end in zip(starts, ends, strict=True))]
    marks = [float(steps - min(int(share / passed[-1] * steps), steps - 1)) for share in passed]
    return tuple(Stage(*row) for row in zip(starts, ends, marks[:-1], marks[1:], jumps, strict=True))


def _jump(e: float, gamma: float) -> Jump:
    alpha = 1 / (math.sqrt(1 + 1 / gamma) * (1 - e) + e)
    return Jump(alpha, alpha * (1 - e) / math.sqrt(gamma), gamma)


def equal_bounds(stages: int) -> tuple[float, ...]:
    """0, 1/K, ..., 1.

    Raises:
        UserError: fewer than one stage.
    """
    if stages < 1:
        raise UserError(f"objective.stages={stages} must be at least 1; 3 in the papers.")
    return tuple(number / stages for number in range(stages + 1))


def euler_points(count: int, steps: int = 1000) -> list[float]:
    """Where a stage of ``count`` Euler steps evaluates the network, evenly from r = 1 to r = 1/N; and the end, 0."""
    return [*torch.linspace(1, 1 / steps, count, dtype=torch.float64).tolist(), 0.0]
