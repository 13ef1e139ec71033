"""Gaussian objectives: flow matching, v-prediction and epsilon-prediction, from four exchangeable parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from typing_extensions import override

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput, LatentShape
from vidlab.diffusion.objective import (
    Backbone,
    Corrupted,
    InputShape,
    Latents,
    Levels,
    Objective,
    ObjectiveLoss,
    squared_error,
)
from vidlab.diffusion.parameterizations import Denoised, Parameterization, noised
from vidlab.diffusion.schedules import Schedule
from vidlab.diffusion.time_samplers import TimeSampler
from vidlab.diffusion.weightings import Weighting
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

GAUSSIAN = "gaussian"


@runtime_checkable
class GaussianProcess(Protocol):
    """What a sampler of Gaussian paths has to know of an objective."""

    @property
    def schedule(self) -> Schedule:
        """The path from data to noise."""
        ...

    @property
    def parameterization(self) -> Parameterization:
        """What the network predicts on it."""
        ...


@dataclass(frozen=True)
class GaussianObjective(Objective):
    """Four small parts: a schedule, a parameterization, a weighting and a time sampler.

    Flow matching, v-prediction and epsilon-prediction are settings of the same four parts, so they share samplers.

    Raises:
        UserError: the parameterization cannot recover x0 at the schedule's noisiest level.
    """

    process: ClassVar[str] = GAUSSIAN

    schedule: Schedule
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler

    def __post_init__(self) -> None:
        noisiest = self.schedule.coefficients(torch.ones(1, dtype=torch.float64))
        if not self.parameterization.x0_gain(noisiest).isfinite().all():
            raise UserError(
                f"objective.parameterization={type(self.parameterization).__name__} cannot tell the clean latents at "
                f"t = 1, where objective.schedule={type(self.schedule).__name__} leaves no signal and every sample "
                "starts. Use VPrediction, Velocity or X0Prediction, or VariancePreserving without ZeroTerminalSNR."
            )

    @override
    def tags(self) -> Mapping[str, str]:
        return {"objective": type(self.parameterization).__name__}

    @override
    def input_shapes(self, latent: LatentShape) -> tuple[InputShape, ...]:
        return (InputShape(latent),)

    @override
    def prepare(self, x0: Latents, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Draw t (purpose "t") and noise (purpose "noise") for each clip and corrupt it."""
        t = self.time_sampler.from_uniform(draw.uniform("t"))  # (B,)
        return self.prepare_at(x0, t, conditions, draw)

    @override
    def prepare_at(self, x0: Latents, t: Levels, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt at given t, one per clip or per latent frame; the noise does not depend on t.

        Known latents are put in after noising, and the error there does not count (STIV, frame replacement).
        """
        noise = draw.normal("noise", tuple(x0.shape[1:])).to(x0)  # (B, C, T, H, W)
        path = self.schedule.coefficients(t.to(x0))  # (B,) each, or (B, T)
        wide = path.like(x0)  # (B, 1, 1, 1, 1), or (B, 1, T, 1, 1)
        latents, known = noised(x0, noise, wide), conditions.known
        return Corrupted(
            input=DenoiserInput(
                latents=latents if known is None else known.put_into(latents),
                t=t,
                embedded_t=self.schedule.embedded(t),
                text=conditions.text,
                history=conditions.history,
                controls=conditions.controls,
                micro=conditions.micro,
                structure=conditions.structure,
            ),
            target=self.parameterization.target(x0, noise, wide),
            weight=self.weighting.weight(path, self.parameterization),
            loss_mask=None if known is None else 1 - known.mask,
        )

    @override
    def validation_levels(self, draw: KeyedRNG) -> tuple[Levels, ...]:
        """One uniform level for each clip (purpose "validation_t")."""
        return (draw.uniform("validation_t"),)

    @override
    def loss(self, corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
        return squared_error(corrupted, output)

    @override
    def denoised(self, output: DenoiserOutput, input: DenoiserInput) -> Denoised:
        """In float32."""
        latents = input.latents.float()
        path = self.schedule.coefficients(input.t.float()).like(latents)
        return self.parameterization.denoised(output.prediction.float(), latents, path)

    @override
    def predict_x0(
        self, backbone: Backbone, x0: Latents, log_snr: float, conditions: Conditions, draw: KeyedRNG
    ) -> Latents:
        t = self.schedule.t_at_log_snr(x0.new_full((len(x0),), log_snr))  # (B,)
        corrupted = self.prepare_at(x0, t, conditions, draw)
        return self.denoised(backbone(corrupted.input), corrupted.input).x0
