"""Videos of a trained model for fixed prompts and fixed noise, kept so that an interrupted evaluation goes on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from vidlab.clip import ClipBatch
from vidlab.conditioning.base import check_conditioning_frames
from vidlab.data.held_out import first_frames
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import write_lossless_mp4
from vidlab.files import remove_leftovers, write_text
from vidlab.lab.evaluation.clips import RECORD, ScoredClip, read_record, write_record
from vidlab.lab.evaluation.reconstruction import write_originals
from vidlab.precision import autocast
from vidlab.randomness import KeyedRNG
from vidlab.training.video_diffusion import VideoDiffusion


@dataclass(frozen=True)
class Recipe:
    """What the videos depend on besides the model and the prompts.

    Args:
        seed: of the noise.
        conditioning_frames: first frames of the held-out clip that are given to the model.
        batch_size: videos made at once; they do not depend on it.
        precision: of the denoiser.
        fps: of the files.
    """

    seed: int
    conditioning_frames: int
    batch_size: int
    precision: str
    fps: float


def identity(**parts: object) -> str:
    """16 hex digits of everything the videos depend on, by name."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def generate_held_out(
    module: VideoDiffusion,
    batches: Iterator[ClipBatch],
    folder: Path,
    recipe: Recipe,
    advance: Callable[[float], None],
) -> list[ScoredClip]:
    """One video for each held-out clip's caption, written losslessly; those already in ``folder`` are kept.

    The noise is keyed by the clip, so models of one latent shape start from the same. A model of
    ``conditioning=structure`` is told the structure of each clip.

    Args:
        module: the model, on its device.
        batches: held-out clips.
        folder: where ``00000.mp4``, ... are; it belongs to exactly this model and recipe.
        recipe: how they are made.
        advance: told of every video.

    Raises:
        UserError: frames are to be given to a model that takes none, or a prompt it cannot read whole.
    """
    check_conditioning_frames(recipe.conditioning_frames, module.conditioning, module.clip_shape[0])
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    clips: list[ScoredClip] = []
    for batch in batches:
        names = [f"{number:05d}.mp4" for number in range(len(clips), len(clips) + len(batch))]
        facts = zip(batch.keys, batch.captions, names, batch.factors or (None,) * len(batch), strict=True)
        made = [ScoredClip(key, caption, folder / name, factors) for key, caption, name, factors in facts]
        if not all(clip.path.is_file() for clip in made):
            _write(module, batch, made, recipe)
        advance(len(batch))
        clips += made
    write_record(folder, clips)
    return clips


def followed_clips(batches: Iterator[ClipBatch], folder: Path, fps: float) -> list[ScoredClip]:
    """The held-out clips whose structure videos follow, what they are compared with, written losslessly and kept.

    Args:
        batches: of the videos.
        folder: of the videos; the clips are in ``originals`` below it.
        fps: of the files.
    """
    originals = folder / "originals"
    return read_record(originals) if (originals / RECORD).is_file() else write_originals(batches, originals, fps)


def _write(module: VideoDiffusion, batch: ClipBatch, clips: list[ScoredClip], recipe: Recipe) -> None:
    for caption in batch.captions:
        module.text_encoder.check(caption)
    with torch.inference_mode(), autocast(module.device.type, recipe.precision):
        videos = _videos(module, batch, recipe)
    for clip, video in zip(clips, videos, strict=True):
        write_text(clip.path.with_suffix(".txt"), clip.caption + "\n")
        write_lossless_mp4(clip.path, to_frames(video), recipe.fps)  # last: a video that is there is not made again


def _videos(module: VideoDiffusion, batch: ClipBatch, recipe: Recipe) -> Tensor:
    draw = KeyedRNG(recipe.seed, batch.keys, (0,) * len(batch))
    pixels = known = None
    if recipe.conditioning_frames:
        pixels, known = first_frames(batch, recipe.conditioning_frames)
    structure = None
    if module.conditioning.tells_structure:
        here = batch.to(module.device)
        structure = module.conditioning.whole_structure(here.pixels, here.factors)
    made = module.pipeline.clips(batch.captions, draw, pixels, known, micro=batch.micro, structure=structure)
    return made.float().cpu()
