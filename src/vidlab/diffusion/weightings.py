"""Loss weights by noise level.

A weight multiplies the squared error of the network's own target. Papers state weights on the error of x0 or of eps;
they are carried over by the gain of the parameterization, the error of x0 (or eps) per error of the prediction.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.diffusion.parameterizations import Parameterization, determinant_of
from vidlab.diffusion.schedules import PathCoefficients
from vidlab.errors import UserError

# Only P2 with an exponent below 1 grows without bound towards clean data; it stops growing at an SNR of 1e8.
P2_MIN_SIGMA = 1e-4


@runtime_checkable
class Weighting(Protocol):
    """A factor on the squared error of the network's own target."""

    def weight(self, path: PathCoefficients, parameterization: Parameterization) -> Float[Tensor, "*t"]:
        """One finite factor per noise level, in the shape of t."""
        ...


@dataclass(frozen=True)
class Constant(Weighting):
    """Weight 1: the plain mean squared error of the target."""

    @override
    def weight(self, path: PathCoefficients, parameterization: Parameterization) -> Float[Tensor, "*t"]:
        return torch.ones_like(path.alpha)


@dataclass(frozen=True)
class VelocityError(Weighting):
    """Turns the squared error of a prediction into that of the velocity it implies.

    At input z, a prediction off by e implies a velocity off by e (sigma' alpha - alpha' sigma) / determinant, and the
    weight is the square of that factor. For a predicted x0 it is 1 / t^2 on the linear path; sigma is then kept above
    ``min_sigma``, since the weight grows without bound where there is no noise (Li & He 2025, "Back to Basics: Let
    Denoising Generative Models Denoise"). For predicted noise alpha is kept above it likewise. The weight is 1 for the
    velocity itself.

    Args:
        min_sigma: lower bound of sigma (or alpha) in the denominator, in (0, 1]. In general the determinant is kept
            above ``min_sigma`` times the larger factor of the target.

    Raises:
        UserError: ``min_sigma`` out of range.
    """

    min_sigma: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.min_sigma <= 1:
            raise UserError(f"objective.weighting.min_sigma={self.min_sigma} must lie in (0, 1].")

    @override
    def weight(self, path: PathCoefficients, parameterization: Parameterization) -> Float[Tensor, "*t"]:
        slope = path.d_sigma * path.alpha - path.d_alpha * path.sigma
        a, b = parameterization.mix(path)
        least = self.min_sigma * torch.maximum(a.abs(), b.abs())
        return (slope / torch.maximum(determinant_of(parameterization, path).abs(), least)).square()


@dataclass(frozen=True)
class MinSNR(Weighting):
    """The error of x0 weighted by min(SNR, gamma), with SNR = alpha^2 / sigma^2 (Hang et al. 2023, section 3.4).

    On a variance-preserving path that is min(SNR, gamma) / (SNR + 1) on the error of v and min(1, gamma / SNR) on that
    of eps. At zero terminal SNR the weight of v is exactly 0 at t = 1, so a network never learns the step at which
    every sample starts; ``min_weight`` above 0 makes it learn.

    Args:
        gamma: SNR above which an error of x0 weighs no more; positive.
        min_weight: lower bound of the weight on the network's own target; not negative.

    Raises:
        UserError: an argument out of range.
    """

    gamma: float = 5.0
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise UserError(f"objective.weighting.gamma={self.gamma} must be positive; 5 is usual.")
        if self.min_weight < 0:
            raise UserError(f"objective.weighting.min_weight={self.min_weight} must not be negative; 0 is no bound.")

    @override
    def weight(self, path: PathCoefficients, parameterization: Parameterization) -> Float[Tensor, "*t"]:
        # SNR x0_gain^2 = epsilon_gain^2. At either end of the path one of the two gains may be infinite, never both.
        x0, epsilon = parameterization.x0_gain(path), parameterization.epsilon_gain(path)
        return torch.minimum(epsilon.square(), self.gamma * x0.square()).clamp(min=self.min_weight)


@dataclass(frozen=True)
class P2(Weighting):
    """The error of eps weighted by 1 / (k + SNR)^gamma: less for imperceptible detail (Choi et al. 2022).

    SNR = alpha^2 / sigma^2, kept below 1e8.

    Args:
        k: bounds the weight where there is no signal; positive.
        gamma: strength; 0 is the plain error of eps.

    Raises:
        UserError: an argument out of range.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.k <= 0:
            raise UserError(f"objective.weighting.k={self.k} must be positive; 1 is usual.")
        if self.gamma < 0:
            raise UserError(f"objective.weighting.gamma={self.gamma} must not be negative; 0 is the plain error.")

    @override
    def weight(self, path: PathCoefficients, parameterization: Parameterization) -> Float[Tensor, "*t"]:
        path = replace(path, sigma=path.sigma.clamp(min=P2_MIN_SIGMA))
        snr = (path.alpha / path.sigma).square()
        return parameterization.epsilon_gain(path).square() * (self.k + snr).pow(-self.gamma)
