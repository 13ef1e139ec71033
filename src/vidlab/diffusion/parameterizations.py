"""What a network predicts, and exact conversions between all of it.

Every target is a linear combination ``y = a x0 + b eps``, and so is the network's input
``z = alpha x0 + sigma eps``. Two equations, two unknowns: x0 and eps follow by Cramer's rule with the determinant
``alpha b - sigma a``. It is 1 everywhere for v on a variance-preserving path and for the velocity of the linear path.
At fixed z an error of y is an error of x0 times sigma / determinant, and of eps times alpha / determinant.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

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

    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """The factors (a, b) of the target a x0 + b eps, in the shape of the path."""
        ...

    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        """What the network should predict; ``path`` broadcasts over latents."""
        ...

    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """x0 and epsilon from a prediction at input z."""
        ...

    def x0_gain(self, path: PathCoefficients) -> Tensor:
        """Error of x0 per error of the prediction, not negative; infinite where x0 cannot be recovered."""
        ...

    def epsilon_gain(self, path: PathCoefficients) -> Tensor:
        """Error of eps per error of the prediction, not negative; infinite where eps cannot be recovered."""
        ...


class LinearTarget(ABC):
    """Target a x0 + b eps with a and b depending on the path: everything follows from ``mix``."""

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
        determinant = determinant_of(self, path)
        # Cramer's rule for z = alpha x0 + sigma eps and y = a x0 + b eps
        return Denoised(
            x0=(b * z - path.sigma * prediction) / determinant,
            epsilon=(path.alpha * prediction - a * z) / determinant,
        )

    def x0_gain(self, path: PathCoefficients) -> Tensor:
        """|sigma / determinant|."""
        return (path.sigma / determinant_of(self, path)).abs()

    def epsilon_gain(self, path: PathCoefficients) -> Tensor:
        """|alpha / determinant|."""
        return (path.alpha / determinant_of(self, path)).abs()


class Velocity(LinearTarget):
    """u = d_alpha x0 + d_sigma eps, the time derivative of the path; eps - x0 on the linear path.

    Lipman et al. 2022, eq. 23, with time reversed.
    """

    name = "velocity"

    @override
    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(d_alpha, d_sigma)."""
        return path.d_alpha, path.d_sigma


class VPrediction(LinearTarget):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, section 4)."""

    name = "v"

    @override
    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha)."""
        return -path.sigma, path.alpha  # Salimans & Ho 2022, section 4


class Epsilon(LinearTarget):
    """The noise itself (Ho et al. 2020, eq. 14). x0 is not finite where alpha = 0: no objective may go there."""

    name = "epsilon"

    @override
    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(0, 1)."""
        return torch.zeros_like(path.alpha), torch.ones_like(path.sigma)

    @override
    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        return epsilon

    @override
    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """x0 = (z - sigma eps) / alpha."""
        return Denoised(x0=(z - path.sigma * prediction) / path.alpha, epsilon=prediction)

    @override
    def epsilon_gain(self, path: PathCoefficients) -> Tensor:
        """Ones, also where alpha = 0."""
        return torch.ones_like(path.alpha)


class X0Prediction(LinearTarget):
    """The clean latents x0. Eps is not finite where sigma = 0; no solver evaluates the network there."""

    name = "x0"

    @override
    def mix(self, path: PathCoefficients) -> tuple[Tensor, Tensor]:
        """(1, 0)."""
        return torch.ones_like(path.alpha), torch.zeros_like(path.sigma)

    @override
    def target(self, x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
        return x0

    @override
    def denoised(self, prediction: Latents, z: Latents, path: PathCoefficients) -> Denoised:
        """Eps = (z - alpha x0) / sigma."""
        return Denoised(x0=prediction, epsilon=(z - path.alpha * prediction) / path.sigma)

    @override
    def x0_gain(self, path: PathCoefficients) -> Tensor:
        """Ones, also where sigma = 0."""
        return torch.ones_like(path.alpha)


def determinant_of(parameterization: Parameterization, path: PathCoefficients) -> Tensor:
    """alpha b - sigma a, in the shape of the path: 0 where the prediction and z do not tell x0 and eps apart."""
    a, b = parameterization.mix(path)
    return path.alpha * b - path.sigma * a


def noised(x0: Latents, epsilon: Latents, path: PathCoefficients) -> Latents:
    """z = alpha x0 + sigma eps."""
    return torch.addcmul(path.alpha * x0, path.sigma, epsilon)
