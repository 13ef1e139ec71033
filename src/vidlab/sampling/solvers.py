"""Solvers: how latents move from one noise level to the next.

Along any Gaussian path the probability-flow ODE is ``dz = x0 d_alpha + eps d_sigma``, with x0 and eps the network's at
the present level: a solver integrates it over alpha and sigma and knows neither the parameterization nor t. Written in
alpha and sigma, not in their ratio, every step is finite from pure noise (alpha = 0) to clean data (sigma = 0).

Coefficients are Python floats computed in float64 on the host, so that no step waits for the device.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.schedules import Schedule
from vidlab.errors import UserError

Latents = Float[Tensor, "B C T H W"]
Denoise = Callable[[Latents, float], Denoised]
Step = Callable[[Latents, float, float, Denoise], Latents]
StepNoise = Callable[[int], Latents]


@runtime_checkable
class Solver(Protocol):
    """Makes the steps of a sampling run."""

    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        """A function of (z, t, s, denoise) that moves latents z from level t to the lower level s, in z's dtype.

        It is made anew for every run and called for one step after the other, so it may remember what it has seen.

        Args:
            schedule: the path.
            noise: standard normal latents for the step of a number, counted from 0; only called where needed.
        """
        ...


@dataclass(frozen=True)
class Euler(Solver):
    """z_s = alpha_s x0 + sigma_s eps: first order, one evaluation per step.

    The velocity's Euler step on the linear path, and DDIM without noise (Song et al. 2021, eq. 12) on any other.
    """

    @override
    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        def step(z: Latents, t: float, s: float, denoise: Denoise) -> Latents:
            alpha, sigma = level(schedule, s)
            x0, epsilon = evaluate(denoise, z, t)
            return alpha * x0 + sigma * epsilon  # Song et al. 2021, eq. 12 without noise

        return step


@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule: x0 and eps averaged over both ends of the step (Karras et al. 2022, algorithm 1).

    Second order, two evaluations per step. The step to clean data is Euler's, since eps may be undefined there.
    """

    @override
    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        def step(z: Latents, t: float, s: float, denoise: Denoise) -> Latents:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
            x0, epsilon = evaluate(denoise, z, t)
            guess = alpha_s * x0 + sigma_s * epsilon
            if sigma_s == 0:
                return guess
            x0_s, epsilon_s = evaluate(denoise, guess, s)
            return z + (alpha_s - alpha_t) / 2 * (x0 + x0_s) + (sigma_s - sigma_t) / 2 * (epsilon + epsilon_s)

        return step


@dataclass(frozen=True)
class DDIM(Solver):
    """Part of the predicted noise is replaced by fresh noise (Song et al. 2021, eq. 12 and 16, for any path).

    z_s = alpha_s x0 + sqrt(sigma_s^2 - fresh^2) eps + fresh n, with
    fresh^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    Args:
        eta: 0 adds no noise and is Euler; 1 samples the exact posterior of z_s given z_t and x0, as DDPM does.

    Raises:
        UserError: ``eta`` outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"sampler.solver.eta={self.eta} must lie in [0, 1]; 0 adds no noise, 1 is DDPM.")

    @override
    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        return _renoising(schedule, noise, self.eta)


@dataclass(frozen=True)
class AncestralEuler(Solver):
    """An Euler step below the next level, then fresh noise up to it: "Euler a" of k-diffusion.

    With r = sigma / alpha: up = min(r_s, eta sqrt(r_s^2 (r_t^2 - r_s^2) / r_t^2)), down = sqrt(r_s^2 - up^2), and
    z_s / alpha_s = x0 + down eps + up n. Multiplied by alpha_s that is DDIM's step for the same eta, at every level and
    on every path; it differs in its default and in allowing eta above 1.

    Args:
        eta: 0 adds no noise and is Euler; 1 is DDPM's amount; above 1 more of the noise is fresh, at most all of it.

    Raises:
        UserError: a negative ``eta``.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise UserError(f"sampler.solver.eta={self.eta} must not be negative; 0 adds no noise.")

    @override
    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        return _renoising(schedule, noise, self.eta)


@dataclass(frozen=True)
class DPMSolverPlusPlus2M(Solver):
    """Second-order multistep solver in half the log SNR, one evaluation per step (Lu et al. 2022b, algorithm 2).

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t and h' that of the step before,
    D = x0 + h / (2 h') (x0 - x0') and z_s = sigma_s / sigma_t z + (alpha_s - alpha_t sigma_s / sigma_t) D.
    The first step, and one to clean data, take D = x0; so does the second where the first began at alpha = 0.
    """

    @override
    def stepper(self, schedule: Schedule, noise: StepNoise) -> Step:
        before: tuple[Tensor, float] | None = None

        def step(z: Latents, t: float, s: float, denoise: Denoise) -> Latents:
            nonlocal before
            (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
            x0, _ = evaluate(denoise, z, t)
            width = half_log_snr(alpha_s, sigma_s) - half_log_snr(alpha_t, sigma_t)
            estimate = x0
            if before is not None and math.isfinite(width):
                estimate = x0 + width / before[1] / 2 * (x0 - before[0])
            before = x0, width
            kept = sigma_s / sigma_t
            return kept * z + (alpha_s - alpha_t * kept) * estimate

        return step


def _renoising(schedule: Schedule, noise: StepNoise, eta: float) -> Step:
    """The steps of DDIM and of ancestral Euler."""
    numbers = itertools.count()

    def step(z: Latents, t: float, s: float, denoise: Denoise) -> Latents:
        number = next(numbers)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
        share = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
        fresh = min(eta * math.sqrt(max(1 - share, 0.0)), 1.0)  # of sigma_s; Song et al. 2021, eq. 16
        x0, epsilon = evaluate(denoise, z, t)
        moved = alpha_s * x0 + sigma_s * math.sqrt(1 - fresh**2) * epsilon  # Song et al. 2021, eq. 12
        return moved if fresh * sigma_s == 0 else moved + fresh * sigma_s * noise(number).to(z)

    return step


def level(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) at t."""
    path = schedule.coefficients(torch.tensor(t, dtype=torch.float64))
    return path.alpha.item(), path.sigma.item()


def half_log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma); -inf for pure noise, inf for clean data."""
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha / sigma)


def evaluate(denoise: Denoise, z: Latents, t: float) -> tuple[Latents, Latents]:
    """x0 and eps at level t in the dtype of z."""
    answer = denoise(z, t)
    return answer.x0.to(z), answer.epsilon.to(z)
