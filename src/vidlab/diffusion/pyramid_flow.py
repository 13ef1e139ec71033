"""Pyramid flow: one frame after another, each through stages of rising resolution, told the frames before it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
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
from vidlab.diffusion.parameterizations import Denoised
from vidlab.diffusion.pyramid_history import Corruption, LinearCorruption, corrupted, frame_levels, history_of
from vidlab.diffusion.pyramid_predictions import StagePoint, StagePrediction, StageVelocity
from vidlab.diffusion.pyramid_resolutions import Pyramid, check_divides, latent_pyramid, noise_pyramid
from vidlab.diffusion.pyramid_stages import Stage, equal_bounds, noise_and_latents, stage_table
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

PYRAMID = "pyramid"


@runtime_checkable
class PyramidProcess(Protocol):
    """What a sampler of pyramids has to know of an objective."""

    @property
    def table(self) -> tuple[Stage, ...]:
        """The stages, coarse to fine."""
        ...

    @property
    def grid(self) -> int:
        """Noise levels of a stage."""
        ...

    def velocity(self, prediction: Latents, input: DenoiserInput) -> Latents:
        """dx/dr that a network's answer implies, in float32."""
        ...


@dataclass(frozen=True)
class PyramidFlow(Objective):
    """Autoregressive pyramid flow matching (Jin et al. 2024, arXiv 2410.05954), as M4V trains it (arXiv 2506.10915).

    A training batch is one frame of each clip at one stage, and the frames before it as history: the newest at the
    stage's resolution, each older one at half of that, down to the coarsest. The error is that of the velocity,
    start - end of the stage's flow (``Stage.flow``), plain and of the current frame alone. Which stage and which frame
    is drawn for a whole global batch, from (seed, batch number), so that the shapes of a batch agree on every rank;
    levels and noise are each clip's own.

    Noise levels t are the embedded numbers over ``grid``: 1 at the start of the first stage, 1/grid at the end of the
    last, falling through all stages in between. Frames that a conditioning makes known are history like all others:
    image-to-video needs no training of its own. Validation predicts the last frame of a clip from clean earlier ones.

    Args:
        stages: K; each doubles the resolution.
        stage_ratios: how often each stage is trained, such as [1, 2, 1] in the authors' training script; None is
            equally often, the default of their class.
        prediction: what the network answers.
        corruption: noise on the history in training.
        image_share: share of batches that train the first frame alone, as an image; all others draw one of the frames.
            1/9 is M4V's ratio of 1:8.
        gamma: of the jumps between stages.
        grid: N, noise levels of a stage: r is one of 1, ..., 1/N.

    Raises:
        UserError: an argument out of range; in use, latents that cannot be halved often enough.
    """

    process: ClassVar[str] = PYRAMID

    stages: int = 3
    stage_ratios: Sequence[float] | None = None
    prediction: StagePrediction = field(default_factory=StageVelocity)
    corruption: Corruption = field(default_factory=LinearCorruption)
    image_share: float = 1 / 9
    gamma: float = 1 / 3
    grid: int = 1000

    def __post_init__(self) -> None:
        equal_bounds(self.stages)
        ratios = self.stage_ratios
        if ratios is not None and (len(ratios) != self.stages or min(ratios) < 0 or sum(ratios) <= 0):
            raise UserError(f"objective.stage_ratios={list(ratios)}: give {self.stages} numbers, one for each stage.")
        if not 0 <= self.image_share <= 1:
            raise UserError(f"objective.image_share={self.image_share} must lie in [0, 1].")
        assert self.table

    @cached_property
    def table(self) -> tuple[Stage, ...]:
        """The stages, coarse to fine."""
        return stage_table(equal_bounds(self.stages), self.grid, self.gamma)

    @override
    def tags(self) -> Mapping[str, str]:
        return {"objective": f"{type(self).__name__} of {self.prediction.name}"}

    @override
    def input_shapes(self, latent: LatentShape) -> tuple[InputShape, ...]:
        """Every frame at every stage.

        Raises:
            UserError: latents that cannot be halved often enough.
        """
        check_divides(latent.height, latent.width, self.stages)
        shares = itertools.product(enumerate(self._stage_shares()), enumerate(self._frame_shares(latent.frames)))
        return tuple(
            InputShape(self._at(latent, stage, 1), self._history_shapes(latent, frame, stage), often * share)
            for (stage, often), (frame, share) in shares
            if often * share
        )

    @override
    def prepare(self, x0: Latents, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """One stage and one frame for the batch (purposes "stage", "frame"), r for each clip (purpose "t")."""
        stage = _pick(self._stage_shares(), draw.shared("stage"))
        frame = _pick(self._frame_shares(x0.shape[2]), draw.shared("frame"))
        r = 1 - (draw.uniform("t") * self.grid).floor() / self.grid  # (B,), one of 1, ..., 1/N
        return self._example(x0, stage, frame, r, conditions, draw, corrupt=True)

    @override
    def prepare_at(self, x0: Latents, t: Levels, conditions: Conditions, draw: KeyedRNG) -> Corrupted:
        """The last frame of each clip, after clean ones.

        Raises:
            ValueError: levels of different stages, whose inputs have no common shape; levels per frame.
        """
        if t.ndim != 1:
            raise ValueError("pyramid flow has one noise level per clip")
        embedded = t.double() * self.grid
        number = self._stage_at(embedded.mean().item())
        stage = self.table[number]
        r = (embedded - stage.t_end) / (stage.t_start - stage.t_end)
        if (number < self.stages - 1 and r.min() < -1e-3) or r.max() > 1 + 1e-3:
            raise ValueError(f"noise levels from {t.min():g} to {t.max():g} belong to several stages")
        r = r.clamp(0, 1).float()
        return self._example(x0, number, x0.shape[2] - 1, r, conditions, draw, corrupt=False)

    @override
    def validation_levels(self, draw: KeyedRNG) -> tuple[Levels, ...]:
        """One for each clip in every stage, at the same place in each (purpose "validation_t")."""
        r = 1 - draw.uniform("validation_t")  # (B,) in (0, 1]
        return tuple(stage.embedded(r) / self.grid for stage in self.table)

    @override
    def loss(self, corrupted: Corrupted, output: DenoiserOutput) -> ObjectiveLoss:
        """Mean squared error; a clip counts for as many elements as at full resolution, whatever its stage.

        Batches of different stages that accumulate to one step weigh equally, as in steps of their own.
        """
        error = output.prediction.float() - corrupted.target.float()
        error = self.prediction.velocity_error(error, self._point(corrupted.input))
        loss = squared_error(replace(corrupted, target=torch.zeros_like(error)), DenoiserOutput(error))
        coarser = self.stages - 1 - self._stages_of(corrupted.input.embedded_t)
        return replace(loss, counted=loss.counted * 4.0**coarser, part=corrupted.part)

    @override
    def denoised(self, output: DenoiserOutput, input: DenoiserInput) -> Denoised:
        """Clean latents and noise at the stage's resolution, in float32.

        Both ends of the stage follow from its velocity, and both latents and noise from its ends
        (``noise_and_latents``).
        """
        z, v, at = input.latents.float(), self.velocity(output.prediction, input), self._point(input)
        noise, latents = noise_and_latents(z + (1 - at.r) * v, z - at.r * v, at.sigma_start, at.sigma_end)
        return Denoised(latents, noise)

    def velocity(self, prediction: Latents, input: DenoiserInput) -> Latents:
        """dx/dr that a network's answer implies, in float32."""
        return self.prediction.velocity(prediction.float(), input.latents.float(), self._point(input))

    @override
    def predict_x0(
        self, backbone: Backbone, x0: Latents, log_snr: float, conditions: Conditions, draw: KeyedRNG
    ) -> Latents:
        """Every frame at the last stage after clean earlier ones.

        Noise above what the last stage begins with is not to be had there: a lower log SNR is taken for that of r = 1,
        which is about 0.
        """
        sigma = torch.sigmoid(torch.tensor(-log_snr / 2)).item()
        stage = self.table[-1]
        r = x0.new_full((len(x0),), min(sigma / stage.sigma_start, 1.0))
        found = []
        for frame in range(x0.shape[2]):
            example = self._example(x0, self.stages - 1, frame, r, conditions, draw, corrupt=False)
            found.append(self.denoised(backbone(example.input), example.input).x0)
        return torch.cat(found, dim=2)  # (B, C, T, H, W)

    def _example(
        self, x0: Latents, number: int, frame: int, r: Tensor, conditions: Conditions, draw: KeyedRNG, corrupt: bool
    ) -> Corrupted:
        """One frame at one stage, at r of each clip; ``corrupt`` adds noise to the history."""
        check_divides(x0.shape[3], x0.shape[4], self.stages)
        if conditions.controls is not None:
            raise ValueError("pyramid flow has no controls: frames that are known are its history")
        channels, _, height, width = x0.shape[1:]
        clean = latent_pyramid(x0[:, :, : frame + 1], self.stages)  # (B, C, frame + 1, h, w) at each level
        noise = draw.normal(f"noise{frame}", (channels, 1, height, width)).to(x0)  # (B, C, 1, H, W)
        stage = self.table[number]
        now = [level[:, :, frame:] for level in clean]  # (B, C, 1, h, w) at each level
        flow = stage.flow(now[number], noise_pyramid(noise, self.stages)[number], now[number - 1] if number else None)
        r = r.to(x0)
        embedded = stage.embedded(r)
        past = self._corrupted(clean, frame, draw) if corrupt and frame else clean
        return Corrupted(
            input=DenoiserInput(
                latents=flow.at(r),  # (B, C, 1, h, w)
                t=embedded / self.grid,
                embedded_t=embedded,
                text=conditions.text,
                history=history_of(past, frame, number),
                micro=conditions.micro,
            ),
            target=self.prediction.target(flow, now[number]),
            weight=torch.ones_like(r),
            part=f"stage_{number}",
        )

    def _corrupted(self, clean: Pyramid, frames: int, draw: KeyedRNG) -> Pyramid:
        finest = clean[-1][:, :, :frames]
        noise = draw.normal("history_noise", tuple(finest.shape[1:])).to(finest)  # (B, C, frames, H, W)
        share = self.corruption.levels(frames, draw).to(finest)  # (B, frames)
        noises = noise_pyramid(noise, self.stages)
        return tuple(corrupted(level[:, :, :frames], n, share) for level, n in zip(clean, noises, strict=True))

    def _stage_shares(self) -> list[float]:
        ratios = self.stage_ratios or [1.0] * self.stages
        return [ratio / sum(ratios) for ratio in ratios]

    def _frame_shares(self, frames: int) -> list[float]:
        each = (1 - self.image_share) / frames
        return [self.image_share + each, *([each] * (frames - 1))]

    def _stage_at(self, embedded: float) -> int:
        return next((k for k, stage in enumerate(self.table) if embedded > stage.t_end), self.stages - 1)

    def _stages_of(self, embedded: Tensor) -> Tensor:
        """The stage of each number: t_end < t <= t_start. The end of the last stage belongs to it."""
        below = [(embedded <= stage.t_end).long() for stage in self.table[:-1]]
        return sum(below, start=torch.zeros_like(embedded, dtype=torch.long))

    def _point(self, input: DenoiserInput) -> StagePoint:
        embedded = input.embedded_t.view(-1, 1, 1, 1, 1).float()  # (B, 1, 1, 1, 1)
        number = self._stages_of(embedded)  # (B, 1, 1, 1, 1)
        sigma_start, sigma_end, t_start, t_end = (
            torch.stack([value * (number == k) for k, value in enumerate(values)]).sum(dim=0)
            for values in zip(*((s.sigma_start, s.sigma_end, s.t_start, s.t_end) for s in self.table), strict=True)
        )  # (B, 1, 1, 1, 1) each
        return StagePoint(sigma_start, sigma_end, (embedded - t_end) / (t_start - t_end))

    def _at(self, latent: LatentShape, level: int, frames: int) -> LatentShape:
        by = 2 ** (self.stages - 1 - level)
        return LatentShape(latent.channels, frames, latent.height // by, latent.width // by)

    def _history_shapes(self, latent: LatentShape, frame: int, stage: int) -> tuple[LatentShape, ...]:
        groups = itertools.groupby(frame_levels(frame, stage))
        return tuple(self._at(latent, level, len(list(group))) for level, group in groups)


def _pick(shares: Sequence[float], u: float) -> int:
    """The number whose part of [0, 1) u falls into."""
    passed = itertools.accumulate(shares[:-1])
    return next((number for number, bound in enumerate(passed) if u < bound), len(shares) - 1)
