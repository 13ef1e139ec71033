"""Videos of any length through WF-VAE in constant memory: feed frames, get latents, and back."""

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.wfvae.model import WFVAE
from vidlab.errors import UserError
from vidlab.layers.causal import Stream
from vidlab.layers.wavelets import at_least_single

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


class EncodingStream:
    """Frames of one video in, latents out, as soon as they are complete.

    What all calls give, put together, is ``autoencoder.encode`` of the whole video. Between calls at most three frames
    and the tails of the layers' inputs are kept.

    Args:
        autoencoder: in evaluation mode; its tiling is not used.
    """

    def __init__(self, autoencoder: WFVAE) -> None:
        self.autoencoder = autoencoder
        self._stream = Stream()
        self._waiting: Tensor | None = None
        self._space: tuple[int, int, int] | None = None

    @torch.no_grad()
    def feed(self, pixels: Pixels) -> Latents:
        """Latents that are complete after these frames; any number of frames, at times no latents.

        Raises:
            UserError: frames that the autoencoder does not take, or of another size than before.
        """
        model = self.autoencoder
        model.check_frames(pixels)
        self._space = _same_space(pixels, self._space)
        frames = pixels if self._waiting is None else torch.cat([self._waiting, pixels], dim=2)
        parts = []
        if self._stream.first and frames.shape[2]:
            parts.append(self._encode(frames[:, :, :1]))
            self._stream.first = False
            frames = frames[:, :, 1:]
        ready = frames.shape[2] // model.stride.frames * model.stride.frames
        parts += [self._encode(frames[:, :, :ready])] if ready else []
        self._waiting = frames[:, :, ready:].clone()
        if parts:
            return torch.cat(parts, dim=2)
        height, width = pixels.shape[3] // model.stride.height, pixels.shape[4] // model.stride.width
        return pixels.new_empty(pixels.shape[0], model.channels, 0, height, width, dtype=torch.float32)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            UserError: the frames given are not 1 + a multiple of 4.
        """
        left = 0 if self._waiting is None else self._waiting.shape[2]
        if left:
            raise UserError(f"A video has 1 + 4n frames; {left} at its end have no latent frame. Cut or repeat some.")

    def held_values(self) -> int:
        """How many numbers are kept between calls."""
        return self._stream.held_values() + (0 if self._waiting is None else self._waiting.numel())

    def _encode(self, frames: Pixels) -> Latents:
        mean = at_least_single(self.autoencoder.encoder(frames, self._stream).moments).chunk(2, dim=1)[0]
        return (mean - self.autoencoder.latent_shift) * self.autoencoder.latent_scale


class DecodingStream:
    """Latents of one video in, frames out.

    What all calls give, put together, is ``autoencoder.decode`` of all latents. The interpolation in time looks one
    latent ahead, so the last frames come from ``finish``.

    Args:
        autoencoder: in evaluation mode; its tiling is not used.
    """

    def __init__(self, autoencoder: WFVAE) -> None:
        self.autoencoder = autoencoder
        self._stream = Stream()
        self._space: tuple[int, int, int] | None = None
        self._finished = False

    @torch.no_grad()
    def feed(self, latents: Latents) -> Pixels:
        """Frames that are complete after these latents; none after no latents.

        Raises:
            UserError: latents of other channels or another size than before, or after ``finish``.
        """
        model = self.autoencoder
        if self._finished:
            raise UserError("The video was finished; a new one needs a new DecodingStream.")
        if latents.shape[2]:
            model.check_latents(latents)
        self._space = _same_space(latents, self._space)
        if not latents.shape[2]:
            height, width = latents.shape[3] * model.stride.height, latents.shape[4] * model.stride.width
            return latents.new_empty(latents.shape[0], 3, 0, height, width, dtype=torch.float32)
        frames = self.autoencoder.decoder(self.autoencoder.unscaled(latents), self._stream).pixels
        self._stream.first = False
        return frames

    @torch.no_grad()
    def finish(self) -> Pixels | None:
        """The frames that still waited; None if there are none, or if this was asked before."""
        if self._finished:
            return None
        self._finished = True
        return self.autoencoder.decoder.finish(self._stream)

    def held_values(self) -> int:
        """How many numbers are kept between calls."""
        return self._stream.held_values()


def _same_space(video: Tensor, before: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Videos, height and width of a piece of video, which are those of the pieces before it."""
    space = (video.shape[0], video.shape[3], video.shape[4])
    if before not in (None, space):
        raise UserError(
            f"{space[0]} videos of {space[1]} x {space[2]} after {before[0]} of {before[1]} x {before[2]}: one stream "
            "is for one batch of videos of one size."
        )
    return space
