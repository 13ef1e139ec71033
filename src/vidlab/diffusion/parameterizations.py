"""What a network predicts, and exact conversions between all of it.

Every target is a linear combination ``y = a x0 + b eps``, and so is the network's input
``z = alpha x0 + sigma eps``. Two equations, two unknowns: x0 and eps follow by Cramer's rule with the determinant
``alpha b - sigma a``. It is 1 everywhere for v on a variance-preserving path and for the velocity of the linear path.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.diffusion.schedules import PathCoefficients

Latents = Float[Tensor, "B C T H W"]


@dataclass(frozen=True)
class Denoised:
    """The clean latents and the noise that together explain a prediction."""

    x0: Latents
    epsilon: Latents


@runtime_checkable
class Parameterization(Protocol):
    """One choice of network target."""

    name: str

    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        """What the network should predict; ``path`` broadcasts over latents."""
        ...

    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """x0 and epsilon from a prediction at input z."""
        ...


class _Linear(ABC):
    """Target a x0 + b eps with a and b depending on the path."""

    name: str

    @abstractmethod
    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """The factors (a, b)."""

    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        """a x0 + b eps."""
        a, b = self.mix(path)
        return a * x0 + b * epsilon

    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """Solve the two linear equations for x0 and eps."""
        a, b = self.mix(path)
        determinant = path.alpha * b - path.sigma * a
        return Denoised(
            x0=(b * z - path.sigma * prediction) / determinant,
            epsilon=(path.alpha * prediction - a * z) / determinant,
        )


class Velocity(_Linear):
    """u = d_alpha x0 + d_sigma eps, the time derivative of the path; eps - x0 on the linear path.

    Lipman et al. 2022, eq. 23, with time reversed.
    """

    name = "velocity"

    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(d_alpha, d_sigma)."""
        return path.d_alpha, path.d_sigma


class VPrediction(_Linear):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, section 4)."""

    name = "v"

    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha)."""
        return -path.sigma, path.alpha


class Epsilon:
    """The noise itself (Ho et al. 2020, eq. 14). x0 is undefined where alpha = 0."""

    name = "epsilon"

    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        """Eps."""
        return epsilon

    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """x0 = (z - sigma eps) / alpha."""
        return Denoised(x0=(z - path.sigma * prediction) / path.alpha, epsilon=prediction)


class Sample:
    """The clean latents x0. Eps is undefined where sigma = 0."""

    name = "x0"

    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        """x0."""
        return x0

    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """Eps = (z - alpha x0) / sigma."""
        return Denoised(x0=prediction, epsilon=(z - path.alpha * prediction) / path.sigma)


def noised(x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
    """z = alpha x0 + sigma eps."""
    return torch.addcmul(path.alpha * x0, path.sigma, epsilon)
