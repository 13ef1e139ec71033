"""Frames of held-out clips, made by a model from those it is given, or without any model."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.conditioning.base import Conditioning
from vidlab.errors import UserError
from vidlab.pipelines.video_pipeline import VideoPipeline
from vidlab.randomness import KeyedRNG
from vidlab.sampling.long_video import upsampled

Clips = Float[Tensor, "B 3 T H W"]
Frames = Bool[Tensor, "T"]


def known_frames(conditioning: Conditioning, frames: int) -> Frames:
    """The frames of a clip that a model is given: each n-th of a temporal upsampler, those at the start of others."""
    place = torch.arange(frames)
    if conditioning.every is not None:
        return place % conditioning.every == 0
    return place < conditioning.default_num_frames(frames) if conditioning.takes_frames else place < 0


def counted_frames(given: Frames) -> Frames:
    """The frames that are compared: those between two given ones, or, where no gap is, all that are not given.

    Raises:
        UserError: none is left.
    """
    before, after = given.long().cumsum(0) > 0, given.long().flip(0).cumsum(0).flip(0) > 0
    between = ~given & before & after
    found = between if between.any() else ~given
    if not found.any():
        raise UserError(f"all {len(given)} frames are given: nothing is left to compare.")
    return found


@torch.inference_mode()
def made_clips(
    pipeline: VideoPipeline, truth: Clips, captions: Sequence[str], keys: Sequence[str], given: Frames
) -> Clips:
    """The clips with their given frames as they are and the others made; the noise is keyed by clip.

    Raises:
        UserError: clips that are longer than the model's, of a model that does not fill in.
    """
    frames, every = truth.shape[2], pipeline.conditioning.every
    known = given.expand(len(truth), -1)

    def make(pixels: Tensor, known: Tensor, number: int = 0) -> Tensor:
        noise = KeyedRNG(number, tuple(keys), (0,) * len(keys))
        if not pipeline.conditioning.takes_frames:
            return pipeline.clips(captions, noise).float()
        return pipeline.clips(captions, noise, pixels, known).float()

    if every is not None and frames > pipeline.clip_shape[0]:
        return upsampled(make, truth[:, :, ::every], every, pipeline.clip_shape[0])[:, :, :frames]
    if frames != pipeline.clip_shape[0]:
        raise UserError(
            f"frames={frames}: the model's clips have {pipeline.clip_shape[0]}, and only a temporal upsampler goes on "
            "beyond them."
        )
    return torch.where(known[:, None, :, None, None], truth, make(truth, known))


def without_a_model(truth: Clips, given: Frames) -> Mapping[str, Clips]:
    """Frames that are not given as a copy of the given one before, and, where gaps are, as their weighted mean.

    Nothing where no frame is given.
    """
    places = given.nonzero().flatten()
    if not len(places):
        return {}
    place = torch.arange(len(given))
    number = (torch.searchsorted(places, place, right=True) - 1).clamp(min=0)
    before, after = places[number], places[(number + 1).clamp(max=len(places) - 1)]
    found = {"the frame before": truth[:, :, before]}
    if (~given & (place < places[-1])).any():
        share = ((place - before) / (after - before).clamp(min=1))[None, None, :, None, None]
        between = torch.lerp(truth[:, :, before], truth[:, :, after], share.expand_as(truth))
        found = {"linear interpolation": between, **found}
    return found
