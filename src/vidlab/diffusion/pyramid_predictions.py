"""What a network answers in pyramid flow: the velocity of a stage, or the clean latents that it leads to."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.diffusion.pyramid_resolutions import block_means
from vidlab.diffusion.pyramid_stages import Flow
from vidlab.errors import UserError

Latents = Float[Tensor, "B C T H W"]


@dataclass(frozen=True)
class StagePoint:
    """Where on the flow of its stage each clip of a batch is.

    Args:
        sigma_start: share of noise at the start of the stage.
        sigma_end: share of noise at its end.
        r: 1 at the start, 0 at the end.
    """

    sigma_start: Float[Tensor, "B 1 1 1 1"]
    sigma_end: Float[Tensor, "B 1 1 1 1"]
    r: Float[Tensor, "B 1 1 1 1"]

    @property
    def sigma(self) -> Float[Tensor, "B 1 1 1 1"]:
        """Share of noise: r sigma_s + (1 - r) sigma_e."""
        return self.r * self.sigma_start + (1 - self.r) * self.sigma_end

    def signal(self, latents: Latents) -> Latents:
        """What clean x adds to the input: r (1 - sigma_s) P x + (1 - r) (1 - sigma_e) x, P the mean of blocks."""
        coarse, fine = self.r * (1 - self.sigma_start), (1 - self.r) * (1 - self.sigma_end)
        return coarse * block_means(latents) + fine * latents

    def slope(self, latents: Latents) -> Latents:
        """What they add to the velocity: (1 - sigma_s) P x - (1 - sigma_e) x."""
        return (1 - self.sigma_start) * block_means(latents) - (1 - self.sigma_end) * latents


@runtime_checkable
class StagePrediction(Protocol):
    """One choice of what the network answers."""

    @property
    def name(self) -> str:
        """A word for tables of runs."""
        ...

    def target(self, flow: Flow, latents: Latents) -> Latents:
        """What it should answer, given the flow and the clean latents of a stage."""
        ...

    def velocity(self, prediction: Latents, z: Latents, point: StagePoint) -> Latents:
        """The velocity that an answer to the input z implies."""
        ...

    def velocity_error(self, error: Latents, point: StagePoint) -> Latents:
        """By how much the velocity is off where the answer is off by ``error``."""
        ...


@dataclass(frozen=True)
class StageVelocity(StagePrediction):
    """start - end of the stage (Pyramid Flow)."""

    @property
    @override
    def name(self) -> str:
        return "velocity"

    @override
    def target(self, flow: Flow, latents: Latents) -> Latents:
        return flow.velocity

    @override
    def velocity(self, prediction: Latents, z: Latents, point: StagePoint) -> Latents:
        return prediction

    @override
    def velocity_error(self, error: Latents, point: StagePoint) -> Latents:
        return error


@dataclass(frozen=True)
class StageLatents(StagePrediction):
    """Clean latents at the resolution of the stage; the error is still that of the velocity they imply.

    Not in the papers: clean videos are far simpler than noise, so that a narrow network learns this several times
    faster (Li & He 2025, for plain flow matching). With the input z = sigma n + signal(x), the noise is
    n = (z - signal(x)) / sigma and the velocity (sigma_s - sigma_e) n + slope(x).

    Args:
        min_sigma: bound from below of the sigma that the error is divided by, which is 0 at the end of the last stage.
            At 0.05 that end would weigh a hundred times what the first stage does, where color and place are decided.

    Raises:
        UserError: ``min_sigma`` outside (0, 1].
    """

    min_sigma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_sigma <= 1:
            raise UserError(f"objective.prediction.min_sigma={self.min_sigma} must lie in (0, 1].")

    @property
    @override
    def name(self) -> str:
        return "latents"

    @override
    def target(self, flow: Flow, latents: Latents) -> Latents:
        return latents

    @override
    def velocity(self, prediction: Latents, z: Latents, point: StagePoint) -> Latents:
        noise = (z - point.signal(prediction)) / point.sigma.clamp(min=1e-6)
        return (point.sigma_start - point.sigma_end) * noise + point.slope(prediction)

    @override
    def velocity_error(self, error: Latents, point: StagePoint) -> Latents:
        noise = -point.signal(error) / point.sigma.clamp(min=self.min_sigma)
        return (point.sigma_start - point.sigma_end) * noise + point.slope(error)
