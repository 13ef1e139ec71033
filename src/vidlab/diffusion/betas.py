"""Tables of betas: how much noise each step of a discrete diffusion adds.

Step i of N multiplies the signal by sqrt(1 - beta_i) and adds noise of variance beta_i (Ho et al. 2020, eq. 2), so that
after it alpha^2 = prod_{j <= i} (1 - beta_j).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.errors import UserError


@runtime_checkable
class Betas(Protocol):
    """N betas in (0, 1], of which only the last may be 1."""

    def values(self) -> Float[Tensor, "N"]:
        """The table, float64 on the CPU, from the cleanest step to the noisiest."""
        ...


@dataclass(frozen=True)
class LinearBetas(Betas):
    """Betas equally spaced from ``first`` to ``last`` (Ho et al. 2020, section 4).

    Args:
        steps: length N of the table, at least 2.
        first: beta of the cleanest step, in (0, 1).
        last: beta of the noisiest step, in [first, 1).

    Raises:
        UserError: an argument out of range.
    """

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        _check_range(self.steps, self.first, self.last)

    @override
    def values(self) -> Float[Tensor, "N"]:
        return torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class ScaledLinearBetas(Betas):
    """Betas whose square roots are equally spaced: the table of Stable Diffusion (Rombach et al. 2022).

    Args:
        steps: length N of the table, at least 2.
        first: beta of the cleanest step, in (0, 1).
        last: beta of the noisiest step, in [first, 1).

    Raises:
        UserError: an argument out of range.
    """

    steps: int = 1000
    first: float = 0.00085
    last: float = 0.012

    def __post_init__(self) -> None:
        _check_range(self.steps, self.first, self.last)

    @override
    def values(self) -> Float[Tensor, "N"]:
        return torch.linspace(self.first**0.5, self.last**0.5, self.steps, dtype=torch.float64).square()


@dataclass(frozen=True)
class CosineBetas(Betas):
    """alpha^2 follows cos^2(pi/2 (u + offset) / (1 + offset)) for u from 0 to 1 (Nichol & Dhariwal 2021, eq. 17).

    Args:
        steps: length N of the table, at least 2.
        offset: keeps the first beta from vanishing; not negative.
        max_beta: upper bound of every beta, in (0, 1); without it the last would be 1.

    Raises:
        UserError: an argument out of range.
    """

    steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if self.offset < 0:
            raise UserError(f"objective.schedule.betas: offset={self.offset} must not be negative; 0.008 is usual.")
        if not 0 < self.max_beta < 1:
            raise UserError(f"objective.schedule.betas: max_beta={self.max_beta} must lie in (0, 1); 0.999 is usual.")

    @override
    def values(self) -> Float[Tensor, "N"]:
        """1 minus the ratio of neighboring alpha^2, kept below ``max_beta``."""
        u = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        # Nichol & Dhariwal 2021, eq. 17
        signal = torch.cos(torch.pi / 2 * (u + self.offset) / (1 + self.offset)).square()
        return (1 - signal[1:] / signal[:-1]).clamp(max=self.max_beta)


@dataclass(frozen=True)
class ZeroTerminalSNR(Betas):
    """Shifts and scales the alpha of other betas so that the last step is pure noise (Lin et al. 2023, algorithm 1).

    The first step keeps its alpha and the last beta becomes 1.

    Args:
        betas: the table to change.
    """

    betas: Betas

    @override
    def values(self) -> Float[Tensor, "N"]:
        root = (1 - self.betas.values()).cumprod(0).sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        signal = root.square()
        return 1 - torch.cat([signal[:1], signal[1:] / signal[:-1]])


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise UserError(f"objective.schedule.betas: steps={steps} must be at least 2; 1000 is usual.")


def _check_range(steps: int, first: float, last: float) -> None:
    _check_steps(steps)
    if not 0 < first <= last < 1:
        raise UserError(
            f"objective.schedule.betas: first={first} and last={last} must satisfy 0 < first <= last < 1; the betas "
            "grow from the cleanest step to the noisiest."
        )
