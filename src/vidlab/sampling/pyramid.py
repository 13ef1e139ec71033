"""The sampler of pyramid flow: one frame after another, each from coarse to fine, told the frames before it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from typing_extensions import override

from vidlab.clip import Conditions, DenoiserInput, History, KnownLatents
from vidlab.diffusion.objective import Backbone, Objective
from vidlab.diffusion.pyramid_flow import PYRAMID, PyramidProcess
from vidlab.diffusion.pyramid_history import history_of
from vidlab.diffusion.pyramid_resolutions import latent_pyramid, noise_pyramid
from vidlab.diffusion.pyramid_stages import Stage, euler_points
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG
from vidlab.sampling.base import Latents, Progress, Sampler
from vidlab.sampling.frame_guidance import WITHOUT_HISTORY, at_frame
from vidlab.sampling.guidance import Guidance
from vidlab.sampling.guided import predict
from vidlab.sampling.history_cache import HistoryCache, cache_for


@dataclass(frozen=True)
class PyramidSampler(Sampler):
    """Makes a video frame by frame (Pyramid Flow's inference; M4V's).

    A frame starts as noise at the lowest resolution, takes Euler steps from r = 1 to 0 of each stage, and is doubled
    with new noise between two stages. What is done is the history of the frames to come, clean, at falling resolution.
    All passes of guidance have the same history, but those that forget it. Given frames are history from the start. Any
    number of frames can be made, more than in training too.

    Args:
        steps: Euler steps of each stage, for every frame but the first; 10 in Pyramid Flow.
        first_steps: of each stage for the first frame, which has nothing to go by; None is twice ``steps``.
        window: frames of history at most, counted anew from the oldest that is kept, so that a long video stays within
            the lengths that were trained; None keeps all of them.
        max_batch: most rows in one backbone call; None evaluates all videos and all passes of guidance at once.
        cache: what a model whose history is read without the noise level (``history_timestep=clean`` of MM-DiM) made of
            earlier frames is kept over the steps of a stage. It changes time and memory, and results by rounding alone.

    Raises:
        UserError: an argument below 1.
    """

    process: ClassVar[str] = PYRAMID

    steps: int = 10
    first_steps: int | None = None
    window: int | None = None
    max_batch: int | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "first_steps", "window", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"sampler.{name}={value} must be at least 1.")

    @property
    @override
    def name(self) -> str:
        return "Pyramid"

    @override
    def check(self, objective: Objective) -> None:
        if not isinstance(objective, PyramidProcess):
            raise UserError(
                f"objective={type(objective).__name__} is of the {PYRAMID} process and tells no table and grid, which "
                "its samplers read."
            )

    @override
    def passes(self, guidance: Guidance) -> frozenset[str]:
        names = {name for frame in (0, LATE) for name in at_frame(guidance, frame).passes}
        return frozenset({"full", *(name.removesuffix(WITHOUT_HISTORY) for name in names)})

    def steps_of(self, frame: int) -> int:
        """Euler steps of each stage of a frame."""
        return self.steps if frame else (self.first_steps or 2 * self.steps)

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
        """Clean latents from standard normal noise; ``draw`` gives the noise of the jumps ("jump<frame>.<stage>").

        Raises:
            ValueError: ``draw`` or a condition is missing.
            UserError: frames are given that are not the first ones.
        """
        self.check(objective)
        assert isinstance(objective, PyramidProcess)
        given = first_frames(conditions["full"].known)
        count = len(given)
        total = sum(self.steps_of(frame) for frame in range(count, noise.shape[2])) * len(objective.table)
        ticks = itertools.count(1)
        frames = [*given]
        for number in range(count, noise.shape[2]):
            past = self._histories(frames, len(objective.table))
            here_guidance = at_frame(guidance, number)
            maker = _FrameMaker(backbone, objective, here_guidance, past, conditions, self.max_batch, self.cache)
            start = noise_pyramid(noise[:, :, number : number + 1], len(objective.table))  # (B, C, 1, h, w) at each
            z = start[0]
            for stage_number, stage in enumerate(objective.table):
                if stage.jump is not None:
                    z = stage.jump.apply(z, _jump_noise(draw, number, stage_number, start[stage_number]))
                for here, there in itertools.pairwise(euler_points(self.steps_of(number), objective.grid)):
                    # Euler's step along the stage: dx/dr is the velocity, and r falls
                    z = z + (there - here) * maker.velocity(z, stage_number, here)
                    if progress is not None:
                        progress(next(ticks), total)
            frames.append(z)
        return torch.cat(frames, dim=2)  # (B, C, T, H, W)

    def _histories(self, frames: Sequence[Latents], stages: int) -> list[tuple[History, ...]]:
        """What each stage of the next frame is told of those before it."""
        kept = list(frames if self.window is None else frames[-self.window :])
        if not kept:
            return [()] * stages
        pyramid = latent_pyramid(torch.cat(kept, dim=2), stages)
        return [history_of(pyramid, len(kept), stage) for stage in range(stages)]


# A frame so late that whatever a guidance does by frame, it does there.
LATE = 2**31


@dataclass(frozen=True)
class _FrameMaker:
    """The velocity of one frame, under guidance.

    Args:
        histories: clean frames before it, for each stage.
        cache: whether what became of them may be kept.
        caches: for each stage and the passes that are evaluated together.
    """

    backbone: Backbone
    objective: PyramidProcess
    guidance: Guidance
    histories: Sequence[tuple[History, ...]]
    conditions: Mapping[str, Conditions]
    max_batch: int | None
    cache: bool
    caches: dict[tuple[int, tuple[str, ...]], HistoryCache | None] = field(default_factory=dict)

    def velocity(self, z: Latents, stage_number: int, r: float) -> Latents:
        """dx/dr at r of a stage, in float32."""
        stage: Stage = self.objective.table[stage_number]
        embedded = stage.embedded(z.new_full((z.shape[0],), r))
        t = (stage.t_end + (stage.t_start - stage.t_end) * r) / self.objective.grid
        single = DenoiserInput(z, t=embedded / self.objective.grid, embedded_t=embedded)
        names = self.guidance.needs(t)
        told = [name for name in names if not name.endswith(WITHOUT_HISTORY)]
        alone = [name for name in names if name.endswith(WITHOUT_HISTORY)]
        found = self._predict(single, told, stage_number) | self._predict(single, alone, None)
        return self.objective.velocity(self.guidance.combine(found, t), single)

    def _predict(self, single: DenoiserInput, names: Sequence[str], stage: int | None) -> dict[str, Latents]:
        """Predictions of passes that are told the history of a stage; None: nothing."""
        if not names:
            return {}
        history = () if stage is None else self.histories[stage]
        plain = [self.conditions[name.removesuffix(WITHOUT_HISTORY)] for name in names]
        passes = [replace(one, known=None, history=history) for one in plain]
        cache = self._cache(stage, tuple(names)) if stage is not None and history else None
        return dict(zip(names, predict(self.backbone, single, passes, self.max_batch, cache), strict=True))

    def _cache(self, stage: int, names: tuple[str, ...]) -> HistoryCache | None:
        if (stage, names) not in self.caches:
            self.caches[stage, names] = cache_for(self.backbone) if self.cache else None
        return self.caches[stage, names]


def first_frames(known: KnownLatents | None) -> tuple[Latents, ...]:
    """Given latents, frame by frame.

    Raises:
        UserError: others than the first frames of every clip are given.
    """
    if known is None:
        return ()
    given = known.mask.flatten(3).amin(dim=3)[:, 0] > 0  # (B, T)
    count = int(given[0].long().cumprod(0).sum())
    wanted = torch.arange(given.shape[1], device=given.device) < count
    if not torch.equal(given, wanted.expand_as(given)) or not torch.equal(
        given, known.mask.flatten(3).amax(3)[:, 0] > 0
    ):
        raise UserError(
            "This model makes one frame after another, so that only the first frames can be given: image=... or "
            "video=..., without last_image, and with interpolate=false."
        )
    return known.latents[:, :, :count].split(1, dim=2) if count else ()


def _jump_noise(draw: KeyedRNG | None, frame: int, stage: int, like: Latents) -> Latents:
    if draw is None:
        raise ValueError("pyramid flow adds noise between its stages and needs draw=")
    return draw.normal(f"jump{frame}.{stage}", tuple(like.shape[1:])).to(like)
