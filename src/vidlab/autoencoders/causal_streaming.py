"""Streams of causal autoencoders: any length in constant memory, each causal layer keeping the tail of its input."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder, DecodingStream, EncodingStream, Posterior
from vidlab.autoencoders.streaming import WaitingFrames, join_posteriors, no_frames, no_latents, same_videos
from vidlab.errors import UserError
from vidlab.layers.causal import Stream

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


class CausalEncodingStream(EncodingStream):
    """Frames of one batch of videos in, moments of the scaled latents out.

    The first frame is encoded alone, later ones in groups of ``stride.frames``. Between calls less than a group and the
    tails of the layers' inputs are kept.

    Args:
        autoencoder: in evaluation mode; its tiling is not used.
        encode: moments of the latents of the first frame, or of whole groups of later ones, given the stream.
    """

    def __init__(self, autoencoder: Autoencoder, encode: Callable[[Pixels, Stream], Posterior]) -> None:
        self.autoencoder, self._encode = autoencoder, encode
        self._stream, self._waiting = Stream(), WaitingFrames()

    @torch.no_grad()
    @override
    def feed(self, pixels: Pixels) -> Posterior:
        model = self.autoencoder
        model.check_frames(pixels)
        frames = self._waiting.followed_by(pixels)  # (B, 3, waiting + T, H, W)
        parts = []
        if self._stream.first and frames.shape[2]:
            parts.append(self._encode(frames[:, :, :1], self._stream))
            self._stream.first = False
            frames = frames[:, :, 1:]
        ready = self._waiting.keep(frames, model.stride.frames)  # whole groups of frames, perhaps none
        parts += [self._encode(ready, self._stream)] if ready.shape[2] else []
        if parts:
            return join_posteriors(parts)
        empty = no_latents(model, pixels)
        return Posterior(empty, empty)

    @override
    def finish(self) -> None:
        left = len(self._waiting)
        if left:
            step = self.autoencoder.stride.frames
            raise UserError(
                f"A video has 1 + {step}n frames; {left} at its end have no latent frame. Cut or repeat some."
            )

    @override
    def held_values(self) -> int:
        return self._stream.held_values() + self._waiting.held_values()


class CausalDecodingStream(DecodingStream):
    """Latents of one batch of videos in, frames out.

    Args:
        autoencoder: in evaluation mode; its tiling is not used.
        decode: frames that are complete after these latents, given the stream.
        finish: those that a decoder which looks ahead still holds; None for one that does not.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        decode: Callable[[Latents, Stream], Pixels],
        finish: Callable[[Stream], Pixels | None] | None = None,
    ) -> None:
        self.autoencoder, self._decode, self._finish = autoencoder, decode, finish
        self._stream = Stream()
        self._videos: tuple[int, int, int] | None = None
        self._finished = False

    @torch.no_grad()
    @override
    def feed(self, latents: Latents) -> Pixels:
        if self._finished:
            raise UserError("The video was finished; a new one needs a new decoding stream.")
        if latents.shape[2]:
            self.autoencoder.check_latents(latents)
        self._videos = same_videos(latents, self._videos)
        if not latents.shape[2]:
            return no_frames(self.autoencoder, latents)
        frames = self._decode(latents, self._stream)
        self._stream.first = False
        return frames

    @torch.no_grad()
    @override
    def finish(self) -> Pixels | None:
        if self._finished:
            return None
        self._finished = True
        return None if self._finish is None else self._finish(self._stream)

    @override
    def held_values(self) -> int:
        return self._stream.held_values()
