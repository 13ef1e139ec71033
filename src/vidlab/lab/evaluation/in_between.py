"""How well a temporal upsampler makes the frames between given ones, against what needs no model."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError
from vidlab.lab.cli.composed import compose
from vidlab.lab.compose import build_data
from vidlab.lab.loading import load_pipeline
from vidlab.metrics.statistics.over_seeds import mean_over_seeds
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.randomness import KeyedRNG

Clips = Float[Tensor, "B 3 T H W"]
Errors = Float[Tensor, "B"]


def measure(run: str, clips: int = 64, steps: int = 10, name: str = "stiv_tup") -> str:
    """A table for a run of ``experiment=stiv/tup_laptop``, on held-out clips of that experiment, at the run's size.

    Raises:
        UserError: no such run, or one that is no temporal upsampler.
    """
    pipeline = load_pipeline(run, name=name).using(steps=steps)
    every = pipeline.conditioning.every
    if every is None:
        raise UserError(f"{run}: a temporal upsampler is needed: train one with experiment=stiv/tup_laptop.")
    named = zip(("frames", "height", "width"), pipeline.clip_shape, strict=True)
    sizes = [f"data.{key}={value}" for key, value in named]
    data = build_data(compose("experiment=stiv/tup_laptop", *sizes, f"data.val_clips={clips}"))
    data.prepare_data()
    data.setup("validate")
    found: dict[str, list[float]] = {}
    for batch in data.val_dataloader():
        truth = batch.pixels.float()
        made = {"the model": upsampled_clips(pipeline, truth, batch.captions, batch.keys, every)}
        for how, errors in errors_of(truth, made | without_a_model(truth, every), every).items():
            found.setdefault(how, []).extend(errors.tolist())
    return table_of(found)


@torch.inference_mode()
def upsampled_clips(
    pipeline: VideoPipeline, truth: Clips, captions: Sequence[str], keys: Sequence[str], every: int
) -> Clips:
    """The clips with each ``every``-th frame given and the others made."""
    known = torch.zeros(len(truth), truth.shape[2], dtype=torch.bool)
    known[:, ::every] = True
    made = pipeline.clips(captions, KeyedRNG(0, tuple(keys), (0,) * len(keys)), truth, known)
    return torch.where(known[:, None, :, None, None], truth, made.float())


def without_a_model(truth: Clips, every: int) -> dict[str, Clips]:
    """Frames between two given ones as their weighted mean, and as a copy of the one before."""
    given = truth[:, :, ::every]  # (B, 3, K, H, W)
    place = torch.arange(truth.shape[2])
    before = given[:, :, place // every]
    after = given[:, :, (place // every + 1).clamp(max=given.shape[2] - 1)]
    share = (place % every / every)[None, None, :, None, None]
    return {"linear interpolation": torch.lerp(before, after, share.expand_as(before)), "the frame before": before}


def errors_of(truth: Clips, made: Mapping[str, Clips], every: int) -> dict[str, Errors]:
    """The mean squared error of each clip over frames that lie between two given ones; pixels are in [-1, 1]."""
    place = torch.arange(truth.shape[2])
    last = (truth.shape[2] - 1) // every * every
    between = (place % every != 0) & (place < last)
    return {how: (clips - truth)[:, :, between].square().mean(dim=(1, 2, 3, 4)) for how, clips in made.items()}


def table_of(found: Mapping[str, list[float]]) -> str:
    """Mean errors, and how far the model's lie below others, clip by clip, with 95 % intervals."""
    own = torch.tensor(found["the model"], dtype=torch.float64)
    lines = [f"squared error of frames between given ones, {len(own)} held-out clips"]
    for how, errors in found.items():
        other = torch.tensor(errors, dtype=torch.float64)
        line = f"  {how:<21} {other.mean():.5f}"
        if how != "the model":
            gain = mean_over_seeds((own - other).tolist(), drawn="clips")
            interval = f"[{gain.interval.low:+.5f}, {gain.interval.high:+.5f}]" if gain.interval else "one clip"
            line += f"   the model's minus this {gain.value:+.5f} {interval}, 95 %"
        lines.append(line)
    return "\n".join(lines)
