"""Objectives: from clean latents to what the backbone reads, and from its answer to a loss."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Conditions, DenoiserInput, DenoiserOutput
from vidlab.diffusion.parameterizations import Denoised, Parameterization, noised
from vidlab.diffusion.schedules import Schedule, over_latents
from vidlab.diffusion.time_samplers import TimeSampler
from vidlab.diffusion.weightings import Weighting
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

Latents = Float[Tensor, "B C T H W"]
Levels = Float[Tensor, "B"] | Float[Tensor, "B T"]


@dataclass(frozen=True)
class Corrupted:
    """A training example: the backbone's input, its target, and how the error counts.

    Args:
        input: what the backbone reads.
        target: what it should predict.
        weight: factor on the squared error, one per clip (B,) or latent frame (B, T).
        loss_mask: 1 where the error counts, 0 where the answer was given away; broadcastable to the target,
            or None when everything counts.
    """

    input: DenoiserInput
    target: Latents
    weight: Levels
    loss_mask: Float[Tensor, "B #C #T #H #W"] | None = None


@dataclass(frozen=True)
class ObjectiveLoss:
    """The scalar to minimise, the same error per clip, and the elements each clip's is a mean over.

    ``total`` is sum(per_clip * counted) / sum(counted).
    """

    total: Float[Tensor, ""]
    per_clip: Float[Tensor, "B"]
    counted: Float[Tensor, "B"]


@runtime_checkable
class Objective(Protocol):
    """A training problem: free to choose noise level, resolution, stage and history."""

    def prepare(self, x0: Latents, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt clean latents with numbers from ``draw``."""
        ...

    def prepare_at(self, x0: Latents, t: Levels, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt clean latents at given noise levels, one per clip or per latent frame."""
        ...

    def loss(self, corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
        """The error of a prediction."""
        ...

    def denoised(self, output: DenoiserOutput, input: DenoiserInput) -> Denoised:
        """Exact conversion of a prediction to clean latents and noise."""
        ...


@dataclass(frozen=True)
class GaussianObjective:
    """Four small parts: a schedule, a parameterisation, a weighting and a time sampler.

    Flow matching, v-prediction and epsilon-prediction are settings of the same four parts, so they share samplers.

    Raises:
        UserError: the parameterisation cannot recover x0 at the schedule's noisiest level.
    """

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
                "starts. Use VPrediction, Velocity or Sample, or VariancePreserving without ZeroTerminalSNR."
            )

    def prepare(self, x0: Latents, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Draw t (purpose "t") and noise (purpose "noise") for each clip and corrupt it."""
        t = self.time_sampler.from_uniform(draw.uniform("t"))
        return self.prepare_at(x0, t, conditions, draw)

    def prepare_at(self, x0: Latents, t: Levels, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """Corrupt at given t, one per clip or per latent frame; the noise does not depend on t.

        Known latents are put in after noising, and the error there does not count (STIV, frame replacement).
        """
        noise = draw.normal("noise", tuple(x0.shape[1:])).to(x0)
        path = self.schedule.coefficients(t.to(x0))
        wide = path.like(x0)
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
            ),
            target=self.parameterization.target(x0, noise, wide),
            weight=self.weighting.weight(path, self.parameterization),
            loss_mask=None if known is None else 1 - known.mask,
        )

    def loss(self, corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
        """Weighted squared error, averaged where the mask counts: sum(w m e^2) / sum(m); 0 where nothing counts."""
        error = (output.prediction.float() - corrupted.target.float()).square()
        error = error * over_latents(corrupted.weight, error)
        if corrupted.loss_mask is None:
            per_clip = error.mean(dim=(1, 2, 3, 4))
            return ObjectiveLoss(per_clip.mean(), per_clip, torch.full_like(per_clip, error[0].numel()))
        mask = corrupted.loss_mask.expand_as(error)
        total, counted = (error * mask).sum(dim=(1, 2, 3, 4)), mask.sum(dim=(1, 2, 3, 4))
        mean = total.sum() / counted.sum().clamp(min=1)
        return ObjectiveLoss(mean, total / counted.clamp(min=1), counted)

    def denoised(self, output: DenoiserOutput, input: DenoiserInput) -> Denoised:
        """Convert a prediction at ``input`` to clean latents and noise, in float32."""
        latents = input.latents.float()
        path = self.schedule.coefficients(input.t.float()).like(latents)
        return self.parameterization.denoised(output.prediction.float(), latents, path)
