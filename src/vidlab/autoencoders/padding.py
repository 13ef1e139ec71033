"""Clips of any size through an autoencoder that takes only some: padded by repetition, and cut back."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vidlab.autoencoders.base import Autoencoder
from vidlab.autoencoders.streaming import decode_in_chunks, encode_in_chunks


def pad_clip(
    pixels: Float[Tensor, "B C T H W"], size: tuple[int, int, int]
) -> Float[Tensor, "B C frames height width"]:
    """Repeat the last frame, row and column until the clip has (frames, height, width), none of them below its own."""
    frames, height, width = (want - has for want, has in zip(size, pixels.shape[2:], strict=True))
    # axes from the last to the first, each with what comes before and after
    return F.pad(pixels, (0, width, 0, height, 0, frames), mode="replicate")


def cut_clip(
    pixels: Float[Tensor, "B C T H W"], size: tuple[int, int, int]
) -> Float[Tensor, "B C frames height width"]:
    """The first frames, rows and columns: what was there before ``pad_clip``."""
    frames, height, width = size
    return pixels[:, :, :frames, :height, :width]


def encode_padded(
    autoencoder: Autoencoder,
    pixels: Float[Tensor, "B 3 T H W"],
    frames_at_once: int | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "B C t h w"]:
    """Latents of a clip, repeated at its ends to the next size that fits.

    ``frames_at_once`` and ``device`` are as in ``encode_in_chunks``.
    """
    fitting = autoencoder.fitting_size(*pixels.shape[2:])
    padded = pad_clip(pixels, fitting) if fitting != tuple(pixels.shape[2:]) else pixels
    return encode_in_chunks(autoencoder, padded, frames_at_once, device)


def decode_cut(
    autoencoder: Autoencoder,
    latents: Float[Tensor, "B C t h w"],
    size: tuple[int, int, int],
    frames_at_once: int | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "B 3 T H W"]:
    """Pixels of latents that ``encode_padded`` gave for a clip of (frames, height, width), in [-1, 1].

    ``frames_at_once`` and ``device`` are as in ``decode_in_chunks``.
    """
    return cut_clip(decode_in_chunks(autoencoder, latents, frames_at_once, device), size).float().clamp(-1, 1)
