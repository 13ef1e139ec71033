"""Noise schedules: how much signal and how much noise a latent holds at noise level t.

A Gaussian path is ``z_t = alpha(t) x0 + sigma(t) eps``. In vidlab t = 0 is data and t = 1 is noise, always.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.diffusion.betas import Betas
from vidlab.errors import UserError


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
    """View one number per clip (B,) or per latent frame (B, T) so that it broadcasts over (B, C, T, H, W).

    Raises:
        ValueError: numbers of another shape.
    """
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
        """The noise level at which log(alpha^2 / sigma^2) equals ``log_snr``, or the nearest there is."""
        ...


@dataclass(frozen=True)
class LinearPath(Schedule):
    """The straight path of flow matching: alpha = 1 - t, sigma = t.

    Rectified flow (Liu et al. 2022, eq. 1), conditional optimal transport in flow matching (Lipman et al. 2022,
    eq. 22). Those papers, and STIV, count from noise to data; here t = 0 is data.

    Args:
        embedding_scale: the backbone embeds ``embedding_scale * t``; 1000 puts t on the scale of DDPM steps.
    """

    embedding_scale: float = 1000.0

    @override
    def coefficients(self, t: Float[Tensor, "*t"]) -> PathCoefficients:
        """alpha = 1 - t, sigma = t."""
        one = torch.ones_like(t)
        return PathCoefficients(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    @override
    def embedded(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """``embedding_scale * t``."""
        return self.embedding_scale * t

    @override
    def t_at_log_snr(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """log SNR = 2 log((1 - t) / t), so t = sigmoid(-log_snr / 2)."""
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The path of DDPM in continuous time: alpha^2 + sigma^2 = 1, with alpha from a table of N betas.

    DDPM's step i is t = (i + 1) / N, where alpha^2 = prod_{j <= i} (1 - beta_j) (Ho et al. 2020, eq. 4), and t = 0 is
    clean. Between these knots the angle phi = atan2(sigma, alpha) is linear in t, which keeps the variance exact and
    every derivative finite. At a knot the derivative is that of the interval below it.

    The angles are looked up in float64 (float32 on devices without it); the answers have the precision of t.

    Args:
        betas: the table.

    Raises:
        UserError: a beta outside (0, 1], or a 1 before the last.
    """

    betas: Betas
    _angles: dict[torch.device, Float[Tensor, "2 knots"]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        betas = self.betas.values()
        if not bool((betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1):
            raise UserError("objective.schedule.betas: every beta must lie in (0, 1), the last in (0, 1].")
        signal = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])  # alpha^2 by step; Ho et al. 2020, eq. 4
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        # phi and its complement: the sine of each is exact where it vanishes, cos(pi / 2) is not
        self._angles[torch.device("cpu")] = torch.stack([torch.atan2(sigma, alpha), torch.atan2(alpha, sigma)])

    def _table(self, device: torch.device) -> Float[Tensor, "2 knots"]:
        """phi and pi/2 - phi at the N + 1 knots; copied to a device once."""
        if device not in self._angles:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._angles[device] = self._angles[torch.device("cpu")].to(device, dtype)
        return self._angles[device]

    def _position(self, t: Float[Tensor, "*t"], dtype: torch.dtype) -> Float[Tensor, "*t"]:
        """N t within [0, N]; exactly a knot where t is one up to its rounding."""
        position = (t.to(dtype) * self.steps).clamp(0, self.steps)
        knot = position.round()
        return torch.where((position - knot).abs() <= knot * torch.finfo(t.dtype).eps, knot, position)

    @property
    def steps(self) -> int:
        """N, the number of betas."""
        return self._angles[torch.device("cpu")].shape[1] - 1

    @override
    def coefficients(self, t: Float[Tensor, "*t"]) -> PathCoefficients:
        """alpha = cos(phi), sigma = sin(phi), d_alpha = -sin(phi) phi', d_sigma = cos(phi) phi'."""
        table = self._table(t.device)
        position = self._position(t, table.dtype)  # (*t,)
        below = (position.ceil().long() - 1).clamp(min=0)
        low, high = table[:, below], table[:, below + 1]  # (2, *t) each
        angle, complement = low.lerp(high, position - below)
        slope = (high[0] - low[0]) * self.steps
        alpha, sigma = complement.sin(), angle.sin()
        return PathCoefficients(*(value.to(t.dtype) for value in (alpha, sigma, -sigma * slope, alpha * slope)))

    @override
    def embedded(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """N t - 1, the number of DDPM's step; -1 at t = 0."""
        return (self._position(t, self._table(t.device).dtype) - 1).to(t.dtype)

    @override
    def t_at_log_snr(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """phi = atan(exp(-log_snr / 2)), looked up in the table; 1 for a log SNR below that of t = 1."""
        angles = self._table(log_snr.device)[0]
        angle = torch.atan((-log_snr.to(angles.dtype) / 2).exp())
        below = (torch.searchsorted(angles, angle) - 1).clamp(0, self.steps - 1)
        low, high = angles[below], angles[below + 1]
        return ((below + ((angle - low) / (high - low)).clamp(max=1)) / self.steps).to(log_snr.dtype)


@dataclass(frozen=True)
class BoundedAlpha(Schedule):
    """A variance-preserving schedule whose alpha does not fall below a bound, for samplers that divide by it.

    Where the bound holds, alpha is the bound, sigma = sqrt(1 - alpha^2) and neither changes with t.

    Args:
        schedule: the path.
        least: the bound, in (0, 1).
    """

    schedule: Schedule
    least: float

    @override
    def coefficients(self, t: Float[Tensor, "*t"]) -> PathCoefficients:
        path = self.schedule.coefficients(t)
        bounded = path.alpha < self.least
        sigma = (1 - self.least**2) ** 0.5
        return PathCoefficients(
            alpha=torch.where(bounded, self.least, path.alpha),
            sigma=torch.where(bounded, sigma, path.sigma),
            d_alpha=torch.where(bounded, 0.0, path.d_alpha),
            d_sigma=torch.where(bounded, 0.0, path.d_sigma),
        )

    @override
    def embedded(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        return self.schedule.embedded(t)

    @override
    def t_at_log_snr(self, log_snr: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        return self.schedule.t_at_log_snr(log_snr)
