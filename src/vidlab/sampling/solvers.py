"""Solvers: one step along the probability-flow ODE of a Gaussian path."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.schedules import Schedule

Latents = Float[Tensor, "B C T H W"]
Denoise = Callable[[Latents, float], Denoised]


@runtime_checkable
class Solver(Protocol):
    """Moves latents from noise level t to the lower level s."""

    def step(self, z: Latents, t: float, s: float, denoise: Denoise, schedule: Schedule) -> Latents:
        """Latents at s."""
        ...


@dataclass(frozen=True)
class Euler:
    """z_s = z_t + (s - t) u with u = d_alpha x0 + d_sigma eps: first order in the step size."""

    def step(self, z: Latents, t: float, s: float, denoise: Denoise, schedule: Schedule) -> Latents:
        """One explicit Euler step."""
        path = schedule.coefficients(z.new_full((z.shape[0],), t)).like(z)
        denoised = denoise(z, t)
        return z + (s - t) * (path.d_alpha * denoised.x0 + path.d_sigma * denoised.epsilon)
