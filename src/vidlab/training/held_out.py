"""Measuring a model on held-out clips: the objective at noise levels, and the error of its clean latents in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import ClipBatch, Conditions
from vidlab.conditioning.base import TrainingClips
from vidlab.diffusion.objective import Levels, ObjectiveLoss
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.randomness import KeyedRNG

# Validation draws the same noise in every run, whatever its seed, so that runs compare.
VALIDATION_SEED = 0
# A curriculum of conditionings is validated at its last stage, all along.
END_OF_TRAINING = 2**62


@dataclass(frozen=True)
class HeldOut:
    """A validation batch, the same in every run and at every step.

    Args:
        pixels: the clips.
        x0: their latents.
        conditions: caption, known frames and micro-conditions.
        text_only: the same without known frames.
        draw: the random numbers.
    """

    pixels: Float[Tensor, "B 3 T H W"]
    x0: Float[Tensor, "B C t h w"]
    conditions: Conditions
    text_only: Conditions
    draw: KeyedRNG


@dataclass(frozen=True)
class HeldOutMeasures:
    """What is measured of a model on held-out clips.

    Args:
        pipeline: the model as it is now.
    """

    pipeline: VideoPipeline

    def held_out(self, batch: ClipBatch) -> HeldOut:
        """A validation batch with its latents, its conditions and its fixed random numbers."""
        pipeline, draw = self.pipeline, batch.draw(VALIDATION_SEED)
        with torch.no_grad():
            x0 = pipeline.autoencoder.encode(batch.pixels)
        clips = TrainingClips(batch.pixels, x0, draw, END_OF_TRAINING, batch.factors, batch.strides)
        given = pipeline.conditioning.for_training(clips, pipeline.autoencoder)
        text = pipeline.text_encoder(batch.captions)
        conditions = pipeline.condition_builder.build(text, given, x0, batch.size, micro=batch.micro)
        nothing = pipeline.condition_builder.nothing_known(batch.pixels)
        text_only = replace(conditions, known=None, history=(), controls=nothing.controls, structure=None)
        return HeldOut(batch.pixels, x0, conditions, text_only, draw)

    def loss_at(self, held_out: HeldOut, t: Levels) -> ObjectiveLoss:
        """The objective at given noise levels."""
        objective = self.pipeline.objective
        corrupted = objective.prepare_at(held_out.x0, t, held_out.conditions, held_out.draw)
        return objective.loss(corrupted, self.pipeline.denoiser(corrupted.input))

    def losses(self, held_out: HeldOut) -> list[ObjectiveLoss]:
        """The objective at each of its validation levels."""
        return [self.loss_at(held_out, t) for t in self.pipeline.objective.validation_levels(held_out.draw)]

    def x0_errors(self, held_out: HeldOut, log_snr: float) -> Float[Tensor, "B 3 T H W"]:
        """Squared errors in pixels of the x0 that the prediction implies at one log SNR, from the text alone."""
        pipeline = self.pipeline
        x0 = pipeline.objective.predict_x0(
            pipeline.denoiser, held_out.x0, log_snr, held_out.text_only, held_out.draw
        )  # (B, C, t, h, w)
        return (pipeline.autoencoder.decode(x0) - held_out.pixels).square()

    def x0_mse(self, held_out: HeldOut, log_snrs: Sequence[float]) -> dict[str, Float[Tensor, ""]]:
        """Means of ``x0_errors`` by the name of their metric: over these log SNRs, and at each of them."""
        errors = {f"val/x0_mse/log_snr_{value:g}": self.x0_errors(held_out, value).mean() for value in log_snrs}
        return {"val/x0_mse": torch.stack(list(errors.values())).mean(), **errors}
