"""Loss weights by noise level."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.diffusion.schedules import PathCoefficients
from vidlab.errors import UserError


@runtime_checkable
class Weighting(Protocol):
    """A factor on the squared error of the network's own target."""

    def weight(self, path: PathCoefficients) -> Float[Tensor, "*t"]:
        """One factor per noise level, in the shape of t."""
        ...


@dataclass(frozen=True)
class Constant:
    """Weight 1: the plain mean squared error of the target."""

    def weight(self, path: PathCoefficients) -> Float[Tensor, "*t"]:
        """Ones."""
        return torch.ones_like(path.alpha)


@dataclass(frozen=True)
class VelocityError:
    """Turns the squared error of a predicted x0 into that of the velocity it implies.

    At input z, an x0 that is off by e implies a velocity off by e (sigma' alpha - alpha' sigma) / sigma, so the weight
    is the square of that factor: 1 / t^2 on the linear path. Sigma is kept above ``min_sigma``, since the weight grows
    without bound where there is no noise (Li & He 2025, "Back to Basics: Let Denoising Generative Models Denoise").

    Args:
        min_sigma: lower bound of sigma in the denominator, in (0, 1].

    Raises:
        UserError: ``min_sigma`` out of range.
    """

    min_sigma: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.min_sigma <= 1:
            raise UserError(f"objective.weighting.min_sigma={self.min_sigma} must lie in (0, 1].")

    def weight(self, path: PathCoefficients) -> Float[Tensor, "*t"]:
        """One factor per noise level."""
        slope = path.d_sigma * path.alpha - path.d_alpha * path.sigma
        return (slope / path.sigma.clamp(min=self.min_sigma)).square()
