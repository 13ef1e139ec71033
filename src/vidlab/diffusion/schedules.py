"""Noise schedules: how much signal and how much noise a latent holds at noise level t.

A Gaussian path is ``z_t = alpha(t) x0 + sigma(t) eps``. In vidlab t = 0 is data and t = 1 is noise, always.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PathCoefficients:
    """alpha, sigma and their time derivatives at some t; all of one shape."""

    alpha: Float[Tensor, "*t"]
    sigma: Float[Tensor, "*t"]
    d_alpha: Float[Tensor, "*t"]
    d_sigma: Float[Tensor, "*t"]

    def like(self, latents: Float[Tensor, "B C T H W"]) -> "PathCoefficients":
        """Broadcastable over latents: (B,) becomes (B,1,1,1,1) and (B,T) becomes (B,1,T,1,1)."""
        fields = (self.alpha, self.sigma, self.d_alpha, self.d_sigma)
        return PathCoefficients(*(over_latents(value, latents) for value in fields))


def over_latents(value: Float[Tensor, "B"] | Float[Tensor, "B T"], latents: Tensor) -> Tensor:
    """View one number per clip (B,) or per latent frame (B, T) so that it broadcasts over (B, C, T, H, W)."""
    if value.ndim == 1:
        return value.view(-1, 1, 1, 1, 1)
    if value.ndim == 2 and value.shape[1] == latents.shape[2]:
        return value[:, None, :, None, None]
    raise ValueError(f"one number per clip or per latent frame is needed, not {tuple(value.shape)}")


@runtime_checkable
class Schedule(Protocol):
    """A Gaussian path and the number by which a backbone knows a point on it."""

    def coefficients(self, t: Float[Tensor, "*t"]) -> PathCoefficients:
        """alpha, sigma and derivatives at noise level t in [0, 1]."""
        ...

    def embedded(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The number the backbone embeds for t."""
        ...

    def t_at_log_snr(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The noise level at which log(alpha^2 / sigma^2) equals ``log_snr``."""
        ...


@dataclass(frozen=True)
class LinearPath:
    """The straight path of flow matching: alpha = 1 - t, sigma = t.

    Rectified flow (Liu et al. 2022, eq. 1), conditional optimal transport in flow matching (Lipman et al. 2022,
    eq. 22). Those papers, and STIV, count from noise to data; here t = 0 is data.

    Args:
        embedding_scale: the backbone embeds ``embedding_scale * t``; 1000 puts t on the scale of DDPM steps.
    """

    embedding_scale: float = 1000.0

    def coefficients(self, t: Float[Tensor, "*t"]) -> PathCoefficients:
        """alpha = 1 - t, sigma = t."""
        one = torch.ones_like(t)
        return PathCoefficients(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def embedded(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """``embedding_scale * t``."""
        return self.embedding_scale * t

    def t_at_log_snr(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log SNR = 2 log((1 - t) / t), so t = sigmoid(-log_snr / 2)."""
        return torch.sigmoid(-log_snr / 2)
