"""Masked video as extra input channels: the image controller of Open-Sora Plan v1.3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from vidlab.clip import Controls, LatentShape, Stride
from vidlab.conditioning.base import (
    Conditioning,
    FrameConditions,
    FrameEncoder,
    Frames,
    Pixels,
    TrainingClips,
    by_latent_frame,
)
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG

TASKS = ("t2v", "i2v", "transition", "continuation", "random", "clear")


@dataclass(frozen=True)
class Stage:
    """One stage of the mask curriculum.

    Args:
        ratios: how often each task is drawn, by name; they are normalized.
        kept: least and largest share of frames that ``continuation`` and ``random`` keep.
        until_step: training step at which the next stage begins; None for the last.

    Raises:
        UserError: an unknown task, no task, or shares out of range.
    """

    ratios: Mapping[str, float]
    kept: Sequence[float] = (0.0, 1.0)
    until_step: int | None = None

    def __post_init__(self) -> None:
        unknown = set(self.ratios) - set(TASKS)
        if unknown:
            raise UserError(f"conditioning.stages: no task is called {sorted(unknown)}; there are {', '.join(TASKS)}.")
        if min(self.ratios.values(), default=0) < 0 or sum(self.ratios.values()) <= 0:
            raise UserError(f"conditioning.stages: ratios={dict(self.ratios)} must be 0 or more, with one above 0.")
        if len(self.kept) != 2 or not 0 <= self.kept[0] <= self.kept[1] <= 1:
            raise UserError(f"conditioning.stages: kept={list(self.kept)} must be two shares, 0 <= least <= most <= 1.")

    def task(self, u: float) -> str:
        """The task at quantile u in [0, 1)."""
        total, cumulated = sum(self.ratios.values()), 0.0
        chosen = ""
        for name, ratio in self.ratios.items():
            if ratio > 0:
                chosen, cumulated = name, cumulated + ratio / total
                if u < cumulated:
                    break
        return chosen


@dataclass(frozen=True)
class MaskedVideo(Conditioning):
    """Known frames enter as latents of the masked video and as a mask, beside the noisy latents.

    Masked pixels are black before encoding. The mask is 1 where a frame is *discarded*, folded to the latents' frames
    (see ``by_latent_frame``). The backbone adds both through maps that start at zero, so a new model equals its
    text-to-video parent. Noise on the kept frames, of standard deviation exp(N(mean, std^2)) per clip, keeps the
    model from copying flaws of the image.

    Args:
        stages: the curriculum, in order.
        noise_mean, noise_std: mean and standard deviation of the logarithm of the noise on kept frames.
        clean: share of clips whose kept frames get no noise. Open-Sora Plan draws this per batch.

    Raises:
        UserError: stages that do not follow each other, or a share out of range.
    """

    stages: Sequence[Stage]
    noise_mean: float = -3.0
    noise_std: float = 0.5
    clean: float = 0.05
    takes_frames: bool = field(default=True, init=False)
    reads_pixels: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        ends = [stage.until_step for stage in self.stages]
        steps = [step for step in ends if step is not None]
        if not ends or ends[-1] is not None or len(steps) != len(ends) - 1 or steps != sorted(set(steps)):
            raise UserError(
                f"conditioning.stages: until_step={ends} must grow from stage to stage and be null in the last."
            )
        if not 0 <= self.clean <= 1:
            raise UserError(f"conditioning.clean={self.clean} must lie in [0, 1].")

    @override
    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        """Latents of the masked video, and one mask channel for each pixel frame of a latent frame."""
        return (latent.channels, stride.frames)

    @override
    def default_num_frames(self, frames: int) -> int:
        """Half: continuation keeps any number."""
        return max(frames // 2, 1)

    @override
    def gives_all(self, latent_frames: int) -> bool:
        """The error counts everywhere, so that nothing is left out of it."""
        return False

    def stage(self, step: int) -> Stage:
        """The stage of a training step."""
        return next(stage for stage in self.stages if stage.until_step is None or step < stage.until_step)

    @override
    def for_training(self, clips: TrainingClips, encoder: FrameEncoder) -> FrameConditions:
        """A task for each clip, and noise on the frames it keeps.

        Raises:
            ValueError: no pixels; latents of a masked video do not follow from those of the whole.
        """
        pixels, draw = clips.pixels, clips.draw
        if pixels is None:
            raise ValueError("masked video needs the pixels of the clips")
        frames = self.kept_frames(pixels.shape[2], draw, clips.step).to(pixels.device)
        level = torch.exp(self.noise_mean + self.noise_std * draw.normal("condition_level", ()))  # (B,)
        level = torch.where(draw.uniform("condition_clean") < self.clean, 0, level).to(pixels)
        noise = draw.normal("condition_noise", tuple(pixels.shape[1:])).to(pixels)  # (B, 3, T, H, W)
        return self.for_inference(pixels + level[:, None, None, None, None] * noise, frames, encoder)

    def kept_frames(self, count: int, draw: KeyedRNG, step: int) -> Frames:
        """True at kept frames of each clip."""
        stage, draw = self.stage(step), draw.on_host
        order = draw.uniform("condition_order", (count,)).argsort(dim=1).argsort(dim=1)
        rows = zip(draw.uniform("task").tolist(), draw.uniform("condition_share").tolist(), order, strict=True)
        return torch.stack([_kept(stage.task(u), stage, count, share, ranks) for u, share, ranks in rows])

    @override
    def for_inference(self, pixels: Pixels, frames: Frames, encoder: FrameEncoder) -> FrameConditions:
        """Latents of the video with all other frames black, and the folded mask."""
        masked = encoder.encode(torch.where(frames[:, None, :, None, None], pixels, -1.0))
        mask = folded_mask(frames, tuple(masked.shape[2:]), encoder.stride).to(masked)  # (B, stride.frames, t, h, w)
        known = 1 - mask.amax(dim=1, keepdim=True)  # (B, 1, t, h, w)
        return FrameConditions(controls=Controls(channels=torch.cat([masked, mask], dim=1), mask=known))


def folded_mask(frames: Frames, shape: Sequence[int], stride: Stride) -> Float[Tensor, "B f t h w"]:
    """1 at discarded frames, (B, pixel frames per latent frame, T', h, w)."""
    folded = by_latent_frame(~frames, shape[0], stride).transpose(1, 2).float()
    return folded[..., None, None].expand(*folded.shape, *shape[1:])


def _kept(task: str, stage: Stage, count: int, share: float, ranks: Tensor) -> Bool[Tensor, "T"]:
    place = torch.arange(count)
    if task == "i2v":
        return place == 0
    if task == "transition":
        return (place == 0) | (place == count - 1)
    if task in ("continuation", "random"):
        least, most = math.floor(stage.kept[0] * count), math.ceil(stage.kept[1] * count)
        number = least + int(share * (most - least + 1))
        return place < number if task == "continuation" else ranks < number
    return torch.full((count,), task == "clear")
