"""The sampler of Gaussian objectives: one loop over noise levels for all frames at once."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from typing_extensions import override

from vidlab.clip import Conditions
from vidlab.diffusion.gaussian import GAUSSIAN, GaussianProcess
from vidlab.diffusion.objective import Backbone, Objective
from vidlab.diffusion.schedules import BoundedAlpha, Schedule
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG
from vidlab.sampling.base import Latents, Progress, Sampler
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.guided import GuidedDenoiser
from vidlab.sampling.solvers import Solver, level
from vidlab.sampling.spacings import Spacing, Trailing


@dataclass(frozen=True)
class GaussianSampler(Sampler):
    """Integrates from noise to t = 0 (data).

    Levels are spaced in u, and t = shift u / (1 + (shift - 1) u) (Esser et al. 2024, eq. 23): a shift above 1 takes
    more steps at high noise, where layout and colors are decided.

    Args:
        solver: how one step is made.
        steps: number of steps.
        shift: 1 leaves the levels as they are spaced; anything else goes with ``Trailing`` only.
        spacing: the levels u; by default equal steps from 1 to 0.
        max_batch: most rows in one backbone call; null evaluates all videos and all passes of guidance at once.
        start: variance of the noise at the first level: ``level`` is that of the schedule there, ``unit`` is 1, as
            Stable Diffusion 1.x starts below t = 1.
        least_alpha: a lower bound of alpha in sampling. A schedule of zero terminal SNR has alpha = 0 at t = 1;
            Open-Sora Plan v1.3 samples with 2^-12 there, as diffusers' ancestral Euler does: its first step is 2 % off.

    Raises:
        UserError: fewer than one step or row, a shift that is not positive, or another start.
    """

    process: ClassVar[str] = GAUSSIAN

    solver: Solver
    steps: int = 32
    shift: float = 1.0
    spacing: Spacing = field(default_factory=Trailing)
    max_batch: int | None = None
    start: str = "level"
    least_alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise UserError(f"sampler.shift={self.shift} must be positive; 1 spaces the steps evenly.")
        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps} must be at least 1.")
        if self.start not in ("level", "unit"):
            raise UserError(f"sampler.start={self.start}: choose level or unit.")
        if not 0 <= self.least_alpha < 1:
            raise UserError(f"sampler.least_alpha={self.least_alpha} must lie in [0, 1); 0 follows the schedule.")
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"sampler.max_batch={self.max_batch} must be at least 1, or null for no limit.")

    def times(self, schedule: Schedule) -> list[float]:
        """``steps + 1`` falling noise levels in [0, 1], the last of them 0 unless the spacing ends elsewhere."""
        if self.shift != 1 and not isinstance(self.spacing, Trailing):
            raise UserError(
                f"sampler.shift={self.shift} would move the levels of sampler.spacing={type(self.spacing).__name__}. "
                "Use sampler.shift=1, or the Trailing spacing."
            )
        # Esser et al. 2024, eq. 23. At u = 1 the quotient may come out one rounding above 1, where there is no schedule
        levels = (self.shift * u / (1 + (self.shift - 1) * u) for u in self.spacing.times(self.steps, schedule))
        return [min(t, 1.0) for t in levels]

    def _bounded(self, schedule: Schedule) -> Schedule:
        middle = level(schedule, 0.5)
        if not math.isclose(math.hypot(*middle), 1.0, abs_tol=1e-6):
            raise UserError(
                f"sampler.least_alpha={self.least_alpha} is for schedules of constant variance, and "
                f"{type(schedule).__name__} is none. Use sampler.least_alpha=0."
            )
        return BoundedAlpha(schedule, self.least_alpha)

    @property
    @override
    def name(self) -> str:
        return type(self.solver).__name__

    @override
    def check(self, objective: Objective) -> None:
        self.times(gaussian_process(objective).schedule)

    @override
    def passes(self, guidance: Guidance) -> frozenset[str]:
        return frozenset(("full", *guidance.passes))

    @torch.no_grad()
    @override
    def sample(
        self,
        backbone: Backbone,
        objective: Objective,
        guidance: Guidance,
        noise: Latents,
        conditions: Mapping[str, Conditions],
        progress: Progress | None = None,
        draw: KeyedRNG | None = None,
    ) -> Latents:
        """Clean latents from standard normal noise.

        Known latents are put into the input of each step and into the result. ``draw`` is for solvers that add noise
        (purposes "step0", "step1", ...).

        Raises:
            ValueError: a solver that adds noise without ``draw``; a condition that is missing.
            UserError: ``least_alpha`` with a schedule that does not preserve the variance.
        """

        def step_noise(step: int) -> Latents:
            if draw is None:
                raise ValueError(f"{type(self.solver).__name__} adds noise at every step and needs draw=")
            return draw.normal(f"step{step}", tuple(noise.shape[1:])).to(noise)  # (B, C, T, H, W)

        process = gaussian_process(objective)
        schedule = self._bounded(process.schedule) if self.least_alpha else process.schedule
        denoise = GuidedDenoiser(backbone, schedule, process.parameterization, guidance, conditions, self.max_batch)
        times = self.times(schedule)
        move = self.solver.stepper(schedule, step_noise)
        z = noise if self.start == "unit" else level(schedule, times[0])[1] * noise
        for done, (t, s) in enumerate(itertools.pairwise(times), start=1):
            z = move(z, t, s, denoise)
            if progress is not None:
                progress(done, self.steps)
        known = conditions["full"].known
        return z if known is None else known.put_into(z)


def gaussian_process(objective: Objective) -> GaussianProcess:
    """The objective, where it tells its schedule and its parameterization.

    Raises:
        UserError: it does not.
    """
    if not isinstance(objective, GaussianProcess):
        raise UserError(
            f"objective={type(objective).__name__} is of the {GAUSSIAN} process and has no schedule and "
            "parameterization, which its samplers read."
        )
    return objective
