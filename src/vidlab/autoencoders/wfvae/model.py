"""WF-VAE: a causal video autoencoder around a flow of wavelet energy."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder, Posterior
from vidlab.autoencoders.tiling import Tiling, tiled
from vidlab.autoencoders.wfvae.coders import CoderSizes, Decoded, Decoder, Encoder, WaveletFlow
from vidlab.autoencoders.wfvae.init import start_as_wavelets
from vidlab.autoencoders.wfvae.weights import RELEASED_SCALE, load_weights
from vidlab.clip import Stride
from vidlab.errors import UserError
from vidlab.layers.causal import Stream, whole
from vidlab.layers.wavelets import EXACT, RELEASED, at_least_single

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # of the published implementation, which took it from latent diffusion
STARTS = ("random", "wavelets")

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


@dataclass(frozen=True)
class Analysis:
    """What training looks at on the way down: the posterior of unscaled latents, and the encoder's bands."""

    posterior: Posterior
    flow: WaveletFlow


class WFVAE(Autoencoder):
    """The Wavelet-Flow VAE of Open-Sora Plan (arXiv 2412.00131, section 2.1; arXiv 2411.17459), 4 x 8 x 8.

    Of 1 + 4n frames the first has a latent frame of its own, so an image is a video of one frame. Latents are
    ``(z - shift) * scale`` of the encoder's z. The defaults are the size S.

    Args:
        latent_channels: C.
        width: channels at the finest level: 128 in S, 192 in L.
        encoder_energy, decoder_energy: channels of the energy path, 64 and 128 in S.
        encoder_blocks, decoder_blocks: residual blocks of a level.
        connect_blocks: residual blocks before the decoder's wavelet bands; 1, in the release of v1.3 it is 2.
        attention: whether the coarsest level attends within each frame.
        dropout: share of activations dropped in residual blocks in training.
        scale, shift: one number for all channels, or one for each, that give latents about unit variance. None takes
            those that come with the weights, and without weights 0.18215 and 0, the published ones.
        compat: wavelets with the four digits of the published weights (0.3536) instead of exact ones (1 / (2 sqrt 2)).
        chunk: latent frames processed at once, with the same result for any number; None is all of them.
        tiling: cut frames into overlapping tiles, which changes the result; None does not.
        path: weights: a published folder or file, or a checkpoint of ``task=autoencoder``; None leaves them as drawn.
        start: of training without ``path``: ``random`` weights, or ``wavelets``, which begin as a linear code of the
            energy path's bands (see ``start_as_wavelets``).

    Raises:
        UserError: a setting out of range, or weights that do not fit.
    """

    latent_scale: Tensor
    latent_shift: Tensor
    # all but what meets pixels, latents and wavelet bands
    hidden_matrices = (
        "encoder.down1.[!0]*", "encoder.down2.*", "encoder.mid.*", "decoder.conv_in.*", "decoder.mid.*",
        "decoder.up?.*", "decoder.layer.*",
    )  # fmt: skip

    def __init__(
        self,
        latent_channels: int = 8,
        width: int = 128,
        encoder_energy: int = 64,
        decoder_energy: int = 128,
        encoder_blocks: int = 2,
        decoder_blocks: int = 2,
        connect_blocks: int = 1,
        attention: bool = True,
        dropout: float = 0.0,
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        compat: bool = False,
        chunk: int | None = None,
        tiling: Tiling | None = None,
        path: str | None = None,
        start: str = "random",
    ) -> None:
        super().__init__()
        at_least = {"latent_channels": 1, "width": 1, "encoder_energy": 1, "decoder_energy": 1, "encoder_blocks": 0,
                    "decoder_blocks": 1, "connect_blocks": 0, "chunk": 1}  # fmt: skip
        given = {**locals(), "chunk": 1 if chunk is None else chunk}
        for name, least in at_least.items():
            if given[name] < least:
                raise UserError(f"autoencoder.{name}={given[name]} must be {least} or more.")
        self.stride = Stride(4, 8, 8, first_frame_alone=True)
        self.channels, self.compat = latent_channels, compat
        self.chunk, self.tiling = chunk, tiling
        gain = RELEASED if compat else EXACT
        self.encoder_sizes = CoderSizes(
            latent_channels, width, encoder_energy, encoder_blocks, 0, attention, dropout
        )  # fmt: skip
        self.decoder_sizes = CoderSizes(
            latent_channels, width, decoder_energy, decoder_blocks, connect_blocks, attention, dropout
        )
        with torch.device("meta") if path is not None else nullcontext():  # weights that are replaced are not drawn
            self.encoder = Encoder(self.encoder_sizes, gain)
            self.decoder = Decoder(self.decoder_sizes, gain)
        self.trained = False
        self.register_buffer("latent_scale", self.per_channel(RELEASED_SCALE, "scale"))
        self.register_buffer("latent_shift", self.per_channel(0.0, "shift"))
        if start not in STARTS:
            raise UserError(f"autoencoder.start={start}: choose {' or '.join(STARTS)}.")
        if path is None and start == "wavelets":
            start_as_wavelets(self.encoder, self.decoder, latent_channels)
        if path is not None:
            load_weights(self, path)
        self.set_latent_scale(scale, shift)

    def set_latent_scale(
        self, scale: float | Sequence[float] | None = None, shift: float | Sequence[float] | None = None
    ) -> None:
        """Change what latents are shifted and multiplied by; None leaves one as it is.

        Raises:
            UserError: a wrong number of channels, or a scale that is not above 0.
        """
        with torch.no_grad():
            if scale is not None:
                self.latent_scale.copy_(self.per_channel(scale, "scale"))
            if shift is not None:
                self.latent_shift.copy_(self.per_channel(shift, "shift"))

    def per_channel(self, value: float | Sequence[float], name: str) -> Float[Tensor, "C 1 1 1"]:
        """A scale or shift for each channel.

        Raises:
            UserError: a wrong number of channels, or a scale that is not above 0.
        """
        values = [float(value)] * self.channels if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) != self.channels:
            raise UserError(
                f"autoencoder.{name} has {len(values)} numbers and the latents have {self.channels} channels: give one "
                "number, or one for each channel."
            )
        if not all(math.isfinite(v) for v in values) or (name == "scale" and min(values) <= 0):
            raise UserError(f"autoencoder.{name}={value} must be finite{', and above 0' if name == 'scale' else ''}.")
        return torch.tensor(values).view(-1, 1, 1, 1)

    def posterior(self, pixels: Pixels) -> Posterior:
        """The distribution of the scaled latents.

        Raises:
            UserError: a clip the autoencoder cannot take.
        """
        self.check_clip(pixels)
        moments = self._tiled_moments(pixels)
        mean, log_variance = at_least_single(moments).chunk(2, dim=1)
        mean = (mean - self.latent_shift) * self.latent_scale
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE) + 2 * self.latent_scale.log())

    def encode(self, pixels: Pixels) -> Latents:
        """The mean of the posterior."""
        return self.posterior(pixels).mode

    def decode(self, latents: Latents) -> Pixels:
        """Pixels, (1 + 4 (T' - 1), 8 H', 8 W')."""
        self.check_latents(latents)
        z = self.unscaled(latents)
        if self.tiling is None:
            return self._pixels(z)
        return tiled(self._pixels, z, self.tiling.divided(self.stride.height), self.stride.height)

    def analyse(self, pixels: Pixels) -> Analysis:
        """Posterior of the *unscaled* latents, which the KL term pulls to a standard normal, and the bands."""
        self.check_clip(pixels)
        encoded = self.encoder(pixels, whole())
        mean, log_variance = at_least_single(encoded.moments).chunk(2, dim=1)
        return Analysis(Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE)), encoded.flow)

    def synthesise(self, z: Latents) -> Decoded:
        """Pixels and the decoder's bands, of *unscaled* latents."""
        return self.decoder(z, whole())

    def unscaled(self, latents: Latents) -> Latents:
        """The decoder's z of latents."""
        return latents / self.latent_scale + self.latent_shift

    def last_layer(self) -> Float[Tensor, "K D h w"]:
        """The weight at which the adversarial and the reconstruction loss are balanced."""
        return self.decoder.conv_out.weight

    @override
    def check_trained(self) -> None:
        if not self.trained:
            raise UserError(
                "autoencoder.path is not set, so the autoencoder has random weights. Give a run of task=autoencoder, "
                "or published weights (a folder with config.json and diffusion_pytorch_model.safetensors)."
            )

    def _tiled_moments(self, pixels: Pixels) -> Tensor:
        if self.tiling is None:
            return self._moments(pixels)
        return tiled(self._moments, pixels, self.tiling, 1 / self.stride.height)

    def _moments(self, pixels: Pixels) -> Tensor:
        if self.chunk is None:
            return self.encoder(pixels, whole()).moments
        stream, parts = Stream(), []
        for part in (pixels[:, :, :1], *pixels[:, :, 1:].split(4 * self.chunk, dim=2)):
            parts += [self.encoder(part, stream).moments] if part.shape[2] else []
            stream.first = False
        return torch.cat(parts, dim=2)

    def _pixels(self, z: Latents) -> Pixels:
        if self.chunk is None:
            return self.decoder(z, whole()).pixels
        stream, parts, chunks = Stream(), [], z.split(self.chunk, dim=2)
        for number, part in enumerate(chunks):
            stream.last = number == len(chunks) - 1
            parts.append(self.decoder(part, stream).pixels)
            stream.first = False
        return torch.cat(parts, dim=2)
