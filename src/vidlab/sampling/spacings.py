"""Spacings: at which noise levels a sampler evaluates the network.

Leading, linspace and trailing are the names of Lin et al. 2023, table 2. Step i of a table of N is t = (i + 1) / N.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from typing_extensions import override

from vidlab.diffusion.schedules import Schedule
from vidlab.errors import UserError

# Karras et al. 2022, table 1: where sampling starts.
EDM_SIGMA_MAX = 80.0


@runtime_checkable
class Spacing(Protocol):
    """Chooses the noise levels of a sampling run."""

    def times(self, steps: int, schedule: Schedule) -> list[float]:
        """``steps + 1`` falling noise levels, from the first one evaluated to the one left behind, 0 as a rule."""
        ...


@dataclass(frozen=True)
class Trailing(Spacing):
    """Equal steps in t from 1 to 0: starts at pure noise, as zero terminal SNR needs."""

    @override
    def times(self, steps: int, schedule: Schedule) -> list[float]:
        """1, 1 - 1/steps, ..., 0."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class Leading(Spacing):
    """Every (grid // steps)-th level counted from the cleanest: the spacing of DDIM. It never evaluates t = 1.

    Args:
        grid: number of levels to choose from, that of the schedule's betas.
        offset: added to the number of every level; 1 as Stable Diffusion 1.x samples (``steps_offset``).
        end: the level after the last step: ``clean`` is t = 0; ``first`` is the cleanest level of the grid, as Stable
            Diffusion 1.x has it (``set_alpha_to_one=false``).

    Raises:
        UserError: an argument out of range; in ``times``, more steps than the grid has levels.
    """

    grid: int = 1000
    offset: int = 0
    end: str = "clean"

    def __post_init__(self) -> None:
        _check_grid(self.grid)
        if self.offset < 0:
            raise UserError(f"sampler.spacing.offset={self.offset} must be 0 or more; Stable Diffusion 1.x has 1.")
        if self.end not in ("clean", "first"):
            raise UserError(f"sampler.spacing.end={self.end}: choose clean or first.")

    @override
    def times(self, steps: int, schedule: Schedule) -> list[float]:
        """(i + offset + 1) / grid for i = (steps - 1) stride, ..., stride, 0; then 0, or 1 / grid."""
        _check_steps(steps, self.grid)
        stride = self.grid // steps
        first = (steps - 1) * stride + self.offset + 1
        least = 0 if self.end == "clean" else 1
        if first > self.grid or self.offset + 1 <= least:
            raise UserError(
                f"sampler.spacing: offset={self.offset}, end={self.end} and sampler.steps={steps} leave the "
                f"{self.grid} levels. Use fewer steps, or another offset."
            )
        levels = ((step * stride + self.offset + 1) / self.grid for step in reversed(range(steps)))
        return [*levels, least / self.grid]


@dataclass(frozen=True)
class Linspace(Spacing):
    """Equal steps over a grid of levels from t = 1 to t = 1/grid, both evaluated.

    Args:
        grid: number of levels to choose from, that of the schedule's betas.

    Raises:
        UserError: an empty grid; in ``times``, a single step or more than the grid has levels.
    """

    grid: int = 1000

    def __post_init__(self) -> None:
        _check_grid(self.grid)

    @override
    def times(self, steps: int, schedule: Schedule) -> list[float]:
        """(i + 1) / grid for ``steps`` equally spaced i from grid - 1 to 0, rounded; then 0."""
        _check_steps(steps, self.grid)
        if steps == 1:
            raise UserError("sampler.steps=1: the linspace spacing has two ends. Use spacing Trailing for one step.")
        levels = torch.linspace(self.grid - 1, 0, steps, dtype=torch.float64).round()
        return [*((levels + 1) / self.grid).tolist(), 0.0]


@dataclass(frozen=True)
class Karras(Spacing):
    """Equal steps in (sigma / alpha)^(1/rho): more at low noise (Karras et al. 2022, eq. 5).

    Args:
        rho: 1 is equal steps in sigma / alpha; larger takes more steps at low noise.
        sigma_min: last sigma / alpha that is evaluated; None takes the schedule's at t = 1/1000.
        sigma_max: first sigma / alpha; None takes the schedule's at t = 1, or 80 where there is no signal.

    Raises:
        UserError: an argument out of range; in ``times``, levels that the schedule does not have.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rho", self.rho), ("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"sampler.spacing.{name}={value} must be positive and finite.")

    @override
    def times(self, steps: int, schedule: Schedule) -> list[float]:
        """The levels at which sigma / alpha has the wanted values; then 0."""
        low, high = self._ends(schedule)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        # Karras et al. 2022, eq. 5
        ratios = (high ** (1 / self.rho) + ramp * (low ** (1 / self.rho) - high ** (1 / self.rho))) ** self.rho
        return [*schedule.t_at_log_snr(-2 * ratios.log()).tolist(), 0.0]

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        path = schedule.coefficients(torch.tensor([1e-3, 1.0], dtype=torch.float64))
        first, last = (path.sigma / path.alpha).tolist()
        low = first if self.sigma_min is None else self.sigma_min
        largest = EDM_SIGMA_MAX if last == math.inf else last
        high = largest if self.sigma_max is None else self.sigma_max
        if high > last:
            raise UserError(
                f"sampler.spacing.sigma_max={high} is above the schedule's largest sigma / alpha, {last:g}."
            )
        if low >= high:
            raise UserError(f"sampler.spacing: sigma_min={low:g} must be below sigma_max={high:g}.")
        return low, high


def _check_grid(grid: int) -> None:
    if grid < 1:
        raise UserError(f"sampler.spacing.grid={grid} must be at least 1; 1000 is usual.")


def _check_steps(steps: int, grid: int) -> None:
    if steps > grid:
        raise UserError(f"sampler.steps={steps} exceeds the {grid} levels of sampler.spacing.grid={grid}.")
