"""Held-out clips there and back through an autoencoder, with what that takes."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.base import Autoencoder, Posterior
from vidlab.autoencoders.padding import decode_cut, encode_padded
from vidlab.clip import ClipBatch
from vidlab.data.video import to_frames
from vidlab.data.video.contact_sheets import write_lossless_mp4
from vidlab.errors import DataError
from vidlab.files import write_text
from vidlab.lab.evaluation.clips import ScoredClip, write_record
from vidlab.lab.evaluation.entries import Entry
from vidlab.lab.evaluation.resource_usage import ResourceUsage, profile, timed
from vidlab.precision import autocast
from vidlab.training.autoencoder.latent_stats import LatentMoments

TIMINGS = 3  # at least; a batch is repeated where there are fewer


@dataclass(frozen=True)
class Setup:
    """How clips are reconstructed.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: of the autoencoder.
        fps: of the files.
        frames_at_once: frames that pass the autoencoder at a time, so that memory does not grow with length; None is
            all.
    """

    device: str
    precision: str
    fps: float
    frames_at_once: int | None = None


@dataclass(frozen=True)
class Cost:
    """What an autoencoder takes.

    Args:
        parameters: of the network.
        latent: (C, T', H', W') of one clip.
        padded: (frames, height, width) after padding.
        size: (frames, height, width) of the clips.
        encode_rate, decode_rate: frames of the clips per second, the median over batches after the first.
        encode_mib, decode_mib: most memory above what was held before, for the first batch; None where the system does
            not tell.
        batch: clips in the first batch.
    """

    parameters: int
    latent: tuple[int, ...]
    padded: tuple[int, int, int]
    size: tuple[int, int, int]
    encode_rate: float
    decode_rate: float
    encode_mib: float | None
    decode_mib: float | None
    batch: int

    @property
    def values(self) -> int:
        """Numbers in the latents of a clip."""
        return math.prod(self.latent)

    @property
    def compression(self) -> float:
        """Numbers in a clip, 3 to a pixel, for each in its latents."""
        return 3 * math.prod(self.size) / self.values


@dataclass(frozen=True)
class Reconstructed:
    """The reconstructions of one autoencoder, what they took, and how its latents are distributed."""

    clips: Sequence[ScoredClip]
    cost: Cost
    latents: LatentMoments


def write_originals(batches: Iterable[ClipBatch], folder: Path, fps: float) -> list[ScoredClip]:
    """The clips themselves, losslessly, by the names that what is compared with them has."""
    clips: list[ScoredClip] = []
    for batch in batches:
        clips += _write(batch, batch.pixels, folder, fps, len(clips))
    write_record(folder, clips)
    return clips


def reconstruct_held_out(
    entry: Entry, batches: Sequence[ClipBatch], folder: Path, setup: Setup, advance: Callable[[float], None]
) -> Reconstructed:
    """Encode and decode every clip, and write what comes out as 8 bits, as the originals were.

    Clips whose size does not fit are padded (``encode_padded``), and what comes out is cut back.

    Raises:
        DataError: NaN pixels.
    """
    autoencoder = entry.autoencoder.to(setup.device)
    clock = _Clock(autoencoder, setup)
    clips: list[ScoredClip] = []
    moments: list[LatentMoments] = []
    with torch.inference_mode(), autocast(setup.device, setup.precision):
        first = clock.warm_up(batches[0].pixels)
        for batch in batches:
            back = clock.run(batch.pixels)
            if bool(back.pixels.isnan().any()):
                raise DataError(f"{entry.name} makes NaN pixels of clip {batch.keys[0]} or one beside it.")
            clips += _write(batch, back.pixels.cpu(), folder, setup.fps, len(clips))
            moments.append(back.latents)
            advance(len(batch))
        while len(clock.encoding) < TIMINGS:
            clock.run(batches[0].pixels)
    write_record(folder, clips)
    autoencoder.to("cpu")
    return Reconstructed(clips, _cost(autoencoder, batches[0], clock, first), reduce(add, moments))


@dataclass(frozen=True)
class _Round:
    """What a batch came back as, and the moments of its latents."""

    pixels: Float[Tensor, "B 3 T H W"]
    latents: LatentMoments


class _Clock:
    """Frames per second of every batch but the first time."""

    def __init__(self, autoencoder: Autoencoder, setup: Setup) -> None:
        self.autoencoder, self.setup = autoencoder, setup
        self.encoding: list[float] = []
        self.decoding: list[float] = []

    def warm_up(self, pixels: Float[Tensor, "B 3 T H W"]) -> tuple[ResourceUsage, ResourceUsage]:
        """Memory of both ways; the time is not counted, as first calls choose their kernels."""
        clip, device = self._placed(pixels), self.setup.device
        latents, down = profile(lambda: self._encoded(clip), device)
        _, up = profile(lambda: self._decoded(latents, clip), device)
        return down, up

    def run(self, pixels: Float[Tensor, "B 3 T H W"]) -> "_Round":
        """There and back; the speed is kept."""
        clip, device = self._placed(pixels), self.setup.device
        latents, down = timed(lambda: self._encoded(clip), device)
        made, up = timed(lambda: self._decoded(latents, clip), device)
        frames = clip.shape[0] * clip.shape[2]
        self.encoding.append(frames / down)
        self.decoding.append(frames / up)
        return _Round(made, LatentMoments.of(Posterior(latents.float(), None)))

    def _placed(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Whole clips where the autoencoder is; those that pass in parts stay, and their parts move."""
        return pixels.to(self.setup.device) if self.setup.frames_at_once is None else pixels

    def _encoded(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        return encode_padded(self.autoencoder, clip, self.setup.frames_at_once, self.setup.device)

    def _decoded(self, latents: Float[Tensor, "B C t h w"], clip: Tensor) -> Float[Tensor, "B 3 T H W"]:
        return decode_cut(self.autoencoder, latents, _size(clip), self.setup.frames_at_once, clip.device)


def _size(pixels: Tensor) -> tuple[int, int, int]:
    frames, height, width = pixels.shape[2:]
    return frames, height, width


def _cost(
    autoencoder: Autoencoder, batch: ClipBatch, clock: _Clock, first: tuple[ResourceUsage, ResourceUsage]
) -> Cost:
    size = _size(batch.pixels)
    padded = autoencoder.fitting_size(*size)
    down, up = first
    return Cost(
        sum(parameter.numel() for parameter in autoencoder.parameters()),
        autoencoder.latent_shape(*padded), padded, size,
        statistics.median(clock.encoding), statistics.median(clock.decoding), down.peak_mib, up.peak_mib, len(batch),
    )  # fmt: skip


def _write(batch: ClipBatch, pixels: Tensor, folder: Path, fps: float, start: int) -> list[ScoredClip]:
    clips = []
    facts = zip(batch.keys, batch.captions, batch.factors or (None,) * len(batch), pixels, strict=True)
    for number, (key, caption, factors, video) in enumerate(facts, start=start):
        path = write_lossless_mp4(folder / f"{number:05d}.mp4", to_frames(video), fps)
        write_text(path.with_suffix(".txt"), caption + "\n")
        clips.append(ScoredClip(key, caption, path, factors))
    return clips
