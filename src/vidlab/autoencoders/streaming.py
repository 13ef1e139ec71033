"""Long videos through an autoencoder in bounded memory: some frames at a time, with the result of the whole.

``encode_in_chunks`` and ``decode_in_chunks`` move one chunk at a time to where the autoencoder computes. Causal
autoencoders carry the tails of their layers' inputs from chunk to chunk (Open-Sora Plan report, arXiv 2412.00131,
equation 5); those that code groups of frames by themselves carry an unfinished group (``FrameGroups``).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder, DecodingStream, EncodingStream, Posterior
from vidlab.errors import UserError

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


@torch.no_grad()
def posterior_in_chunks(
    autoencoder: Autoencoder, pixels: Pixels, frames: int | None, device: torch.device | str | None = None
) -> Posterior:
    """The distribution of the latents of whole clips.

    Args:
        autoencoder: in evaluation mode; its tiling is not used where ``frames`` is given.
        pixels: clips; with ``frames`` they may stay where they are, and only chunks of them move.
        frames: that pass at a time; None is all.
        device: where the autoencoder computes, and where the latents are left; None is where the clips are.

    Raises:
        UserError: a clip the autoencoder cannot take, or ``frames`` below 1 or given to one that needs whole clips.
    """
    device = pixels.device if device is None else device
    if frames is None:
        return autoencoder.posterior(pixels.to(device))
    check_chunk(frames)
    autoencoder.latent_shape(*pixels.shape[2:])  # refused before anything is computed
    stream = autoencoder.encoding_stream()
    parts = [stream.feed(part.to(device)) for part in pixels.split(frames, dim=2)]
    stream.finish()
    return join_posteriors(parts)


def encode_in_chunks(
    autoencoder: Autoencoder, pixels: Pixels, frames: int | None, device: torch.device | str | None = None
) -> Latents:
    """``autoencoder.encode`` of whole clips, as ``posterior_in_chunks``."""
    device = pixels.device if device is None else device
    if frames is None:
        return autoencoder.encode(pixels.to(device))
    return posterior_in_chunks(autoencoder, pixels, frames, device).mean


def decode_in_chunks(
    autoencoder: Autoencoder, latents: Latents, frames: int | None, device: torch.device | str | None = None
) -> Pixels:
    """``autoencoder.decode`` of all latents.

    Args:
        autoencoder: in evaluation mode.
        latents: where the autoencoder computes.
        frames: that come out at a time, rounded down to whole latent frames but one at least; None is all.
        device: where the clips are put together; None is where the latents are.

    Raises:
        UserError: as ``posterior_in_chunks``.
    """
    device = latents.device if device is None else device
    if frames is None:
        return autoencoder.decode(latents).to(device)
    check_chunk(frames)
    stream, parts = autoencoder.decoding_stream(), []
    with torch.no_grad():
        for part in latents.split(max(frames // autoencoder.stride.frames, 1), dim=2):
            parts.append(stream.feed(part).to(device))
        last = stream.finish()
    return torch.cat(parts if last is None else [*parts, last.to(device)], dim=2)  # (B, 3, T, H, W)


def check_chunk(frames: int | None) -> None:
    """Refuse a number of frames at a time that is none.

    Raises:
        UserError: naming ``frames_at_once``.
    """
    if frames is not None and frames < 1:
        raise UserError(f"frames_at_once={frames} must be 1 or more, or null for all.")


def join_posteriors(parts: Sequence[Posterior]) -> Posterior:
    """Put together along time."""
    mean = torch.cat([part.mean for part in parts], dim=2)
    variances = [part.log_variance for part in parts if part.log_variance is not None]
    return Posterior(mean, torch.cat(variances, dim=2) if len(variances) == len(parts) else None)


def same_videos(part: Tensor, before: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Videos, height and width of a piece of video, which are those of the pieces before it.

    Raises:
        UserError: they differ.
    """
    space = (part.shape[0], part.shape[3], part.shape[4])
    if before not in (None, space):
        raise UserError(
            f"{space[0]} videos of {space[1]} x {space[2]} after {before[0]} of {before[1]} x {before[2]}: one stream "
            "is for one batch of videos of one size."
        )
    return space


def no_latents(autoencoder: Autoencoder, pixels: Pixels) -> Latents:
    """The latents of no frames."""
    height, width = pixels.shape[3] // autoencoder.stride.height, pixels.shape[4] // autoencoder.stride.width
    return pixels.new_empty(pixels.shape[0], autoencoder.channels, 0, height, width, dtype=torch.float32)


def no_frames(autoencoder: Autoencoder, latents: Latents) -> Pixels:
    """The frames of no latents."""
    height, width = latents.shape[3] * autoencoder.stride.height, latents.shape[4] * autoencoder.stride.width
    return latents.new_empty(latents.shape[0], 3, 0, height, width, dtype=torch.float32)


class WaitingFrames:
    """Frames at the end of a video so far that wait for the rest of their group; all pieces are of the same videos."""

    def __init__(self) -> None:
        self._frames: Tensor | None = None
        self._videos: tuple[int, int, int] | None = None

    def followed_by(self, pixels: Pixels) -> Float[Tensor, "B 3 joined H W"]:
        """The frames that wait, and those that come after them.

        Raises:
            UserError: they are of other videos, or of another size.
        """
        self._videos = same_videos(pixels, self._videos)
        return pixels if self._frames is None else torch.cat([self._frames, pixels], dim=2)

    def keep(self, frames: Pixels, group: int) -> Float[Tensor, "B 3 ready H W"]:
        """Whole groups of these frames; the rest waits."""
        ready = frames.shape[2] // group * group
        self._frames = frames[:, :, ready:].clone()
        return frames[:, :, :ready]

    def __len__(self) -> int:
        return 0 if self._frames is None else self._frames.shape[2]

    def held_values(self) -> int:
        """Numbers that are kept."""
        return 0 if self._frames is None else self._frames.numel()


class FrameGroups(Autoencoder):
    """An autoencoder that codes each ``stride.frames`` frames by themselves: chunks are whole clips of its own."""

    @override
    def encoding_stream(self) -> EncodingStream:
        return GroupEncodingStream(self)

    @override
    def decoding_stream(self) -> DecodingStream:
        return GroupDecodingStream(self)


class GroupEncodingStream(EncodingStream):
    """Frames in, latents of whole groups out; an unfinished group waits.

    Args:
        autoencoder: codes groups of frames by themselves.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder, self._waiting = autoencoder, WaitingFrames()

    @torch.no_grad()
    @override
    def feed(self, pixels: Pixels) -> Posterior:
        model = self.autoencoder
        model.check_frames(pixels)
        ready = self._waiting.keep(self._waiting.followed_by(pixels), model.stride.frames)
        return model.posterior(ready) if ready.shape[2] else Posterior(no_latents(model, pixels))

    @override
    def finish(self) -> None:
        left, step = len(self._waiting), self.autoencoder.stride.frames
        if left:
            raise UserError(f"A video has {step}n frames; {left} at its end have no latent frame. Cut or repeat some.")

    @override
    def held_values(self) -> int:
        return self._waiting.held_values()


class GroupDecodingStream(DecodingStream):
    """Latents in, their frames out; nothing waits.

    Args:
        autoencoder: codes groups of frames by themselves.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder
        self._videos: tuple[int, int, int] | None = None
        self._finished = False

    @torch.no_grad()
    @override
    def feed(self, latents: Latents) -> Pixels:
        if self._finished:
            raise UserError("The video was finished; a new one needs a new decoding stream.")
        self._videos = same_videos(latents, self._videos)
        return self.autoencoder.decode(latents) if latents.shape[2] else no_frames(self.autoencoder, latents)

    @override
    def finish(self) -> None:
        self._finished = True

    @override
    def held_values(self) -> int:
        return 0
