"""Guidance that pulls each frame towards the one before it while a video is made (HARIVO)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.schedules import PathCoefficients
from vidlab.errors import UserError
from vidlab.sampling.guidance import Guidance, Latents
from vidlab.sampling.video_guidance import VideoGuidance


@dataclass(frozen=True)
class MitigatingGradient(Guidance, VideoGuidance):
    """After another guidance, noise that makes neighboring frames of the clean latents more alike.

    Kwon et al. 2024 (HARIVO), algorithm 1. With D_j = x0_j - x0_(j-1), n_j its norm over a whole frame, S = median(n)^2
    / log(F - 1) and w = sigma / alpha, the gradient is G_j = 2 exp(-n_j^2 / S) D_j / S w and eps_j grows by ``scale``
    G_j: x0_j moves by -scale w G_j. Small differences vanish, and a jump far above the median is left alone, as a cut
    may be meant. Clips of one or two frames (log 1 = 0) and those whose median difference is 0 stay as they are.

    Algorithm 1 is not the whole gradient of equation 7: each pair moves its later frame only. ``both`` moves the
    earlier one the other way, as equation 7 would.

    Args:
        inner: the guidance whose result is corrected.
        scale: alpha; 40 to 50 in the paper, which finds no harm below 200.
        both: move both frames of a pair.
        max_ratio: largest sigma / alpha at which it works. The paper's schedule ends at 25.2; where latents are pure
            noise, as others begin, nothing can be told of frames.

    Raises:
        UserError: an argument out of range, or a guidance within it that acts on whole videos too.
    """

    inner: Guidance
    scale: float = 40.0
    both: bool = False
    max_ratio: float = 26.0

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise UserError(f"guidance.scale={self.scale} must not be negative; 0 changes nothing, 40 is usual.")
        if not self.max_ratio > 0:
            raise UserError(f"guidance.max_ratio={self.max_ratio} must be positive; the paper's schedule ends at 25.2.")

    @property
    @override
    def passes(self) -> tuple[str, ...]:
        return self.inner.passes

    @override
    def needs(self, t: float) -> tuple[str, ...]:
        return self.inner.needs(t)

    @override
    def combine(self, predictions: Mapping[str, Latents], t: float) -> Latents:
        return self.inner.combine(predictions, t)

    @override
    def corrected(self, denoised: Denoised, path: PathCoefficients) -> Denoised:
        ratio = path.sigma / path.alpha.clamp(min=torch.finfo(path.alpha.dtype).tiny)  # (B, 1, 1, 1, 1)
        works = ratio <= self.max_ratio
        # HARIVO, algorithm 1, lines 4 and 5: the ratio is its omega
        shift = self.scale * mitigating_gradient(denoised.x0, self.both) * torch.where(works, ratio, 0)
        return Denoised(denoised.x0 - torch.where(works, ratio, 0) * shift, denoised.epsilon + shift)


def mitigating_gradient(x0: Latents, both: bool = False) -> Latents:
    """G / w of algorithm 1 in the shape of the latents; 0 for the first frame.

    Args:
        x0: clean latents of all frames.
        both: the gradient of equation 7 to both frames of a pair, which adds up to 0 over frames.
    """
    frames = x0.shape[2]
    if frames < 3:
        return torch.zeros_like(x0)
    change = x0.diff(dim=2)  # (B, C, T - 1, H, W)
    # HARIVO, algorithm 1, lines 2 to 4
    squared = change.square().sum(dim=(1, 3, 4))  # (B, T - 1)
    # the lower of two middle values
    bandwidth = squared.median(dim=1, keepdim=True).values / math.log(frames - 1)  # (B, 1)
    safe = torch.where(bandwidth > 0, bandwidth, 1)
    factor = torch.where(bandwidth > 0, 2 * torch.exp(-squared / safe) / safe, 0)  # (B, T - 1)
    gradient = change * factor[:, None, :, None, None]  # (B, C, T - 1, H, W)
    still = torch.zeros_like(x0[:, :, :1])
    later = torch.cat([still, gradient], dim=2)  # (B, C, T, H, W)
    return later - torch.cat([gradient, still], dim=2) if both else later
