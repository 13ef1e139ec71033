"""WF-VAE (Open-Sora Plan): a causal 4 x 8 x 8 video autoencoder around a flow of energy in wavelet sub-bands."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import ExportedFormat, Posterior
from vidlab.autoencoders.causal_streaming import CausalDecodingStream, CausalEncodingStream
from vidlab.autoencoders.learned import WAVELET_BANDS, DecoderOutput, EncoderOutput, LearnedAutoencoder
from vidlab.autoencoders.tiling import Tiling, tiled
from vidlab.autoencoders.wfvae.coders import CoderSizes, Decoder, Encoder, posterior_of
from vidlab.autoencoders.wfvae.init import start_as_wavelets
from vidlab.autoencoders.wfvae.published_config import KIND
from vidlab.autoencoders.wfvae.weights import (
    RELEASED_SCALE,
    export_weights,
    load_weights,
    stored_settings,
    stored_sizes,
)
from vidlab.clip import Stride
from vidlab.errors import UserError
from vidlab.layers.causal import Stream, whole
from vidlab.layers.wavelets import EXACT, RELEASED

STARTS = ("random", "wavelets")

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


class WFVAE(LearnedAutoencoder):
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

    # all but what meets pixels, latents and wavelet bands
    hidden_matrices = (
        "encoder.down1.[!0]*", "encoder.down2.*", "encoder.mid.*", "decoder.conv_in.*", "decoder.mid.*",
        "decoder.up?.*", "decoder.layer.*",
    )  # fmt: skip
    features = frozenset({WAVELET_BANDS})
    published_class = KIND
    lr_multipliers: ClassVar = {
        "encoder.connect_l*": 0.05,
        "encoder.down1.0.*": 0.05,
    }  # they read bands up to 16

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
        at_least = {"latent_channels": 1, "width": 1, "encoder_energy": 1, "decoder_energy": 1, "encoder_blocks": 0,
                    "decoder_blocks": 1, "connect_blocks": 0, "chunk": 1}  # fmt: skip
        given = {**locals(), "chunk": 1 if chunk is None else chunk}
        for name, least in at_least.items():
            if given[name] < least:
                raise UserError(f"autoencoder.{name}={given[name]} must be {least} or more.")
        super().__init__(latent_channels, Stride(4, 8, 8, first_frame_alone=True), RELEASED_SCALE, 0.0)
        self.compat, self.chunk, self.tiling = compat, chunk, tiling
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
        if start not in STARTS:
            raise UserError(f"autoencoder.start={start}: choose {' or '.join(STARTS)}.")
        if path is None and start == "wavelets":
            start_as_wavelets(self.encoder, self.decoder, latent_channels)
        if path is not None:
            self.load_trained(path)
        self.set_latent_scale(scale, shift)

    @override
    def encode_to_moments(self, pixels: Pixels, requested: frozenset[str] = frozenset()) -> EncoderOutput:
        self.check_requested(requested)
        self.check_clip(pixels)
        found = self.encoder(pixels, whole())
        return EncoderOutput(found.posterior, {WAVELET_BANDS: found.flow.bands} if requested else {})

    @override
    def decode_z(self, z: Latents, requested: frozenset[str] = frozenset()) -> DecoderOutput:
        self.check_requested(requested)
        found = self.decoder(z, whole())
        return DecoderOutput(found.pixels, {WAVELET_BANDS: found.flow.bands} if requested else {})

    @override
    def last_decoder_weight(self) -> Float[Tensor, "K D h w"]:
        return self.decoder.conv_out.weight

    @override
    def posterior(self, pixels: Pixels) -> Posterior:
        self.check_clip(pixels)
        if self.tiling is None:
            return self.scaled(posterior_of(self._moments(pixels)))
        return self.scaled(posterior_of(tiled(self._moments, pixels, self.tiling, 1 / self.stride.height)))

    @override
    def decode(self, latents: Latents) -> Pixels:
        self.check_latents(latents)
        z = self.unscaled(latents)
        if self.tiling is None:
            return self._pixels(z)
        return tiled(self._pixels, z, self.tiling.divided(self.stride.height), self.stride.height)

    @override
    def encoding_stream(self) -> CausalEncodingStream:
        return CausalEncodingStream(self, lambda frames, stream: self.scaled(self.encoder(frames, stream).posterior))

    @override
    def decoding_stream(self) -> CausalDecodingStream:
        # the interpolation in time looks one latent ahead, so the last frames come at the end
        def decode(latents: Latents, stream: Stream) -> Pixels:
            return self.decoder(self.unscaled(latents), stream).pixels

        return CausalDecodingStream(self, decode, self.decoder.finish)

    @override
    def load_trained(self, path: str | Path) -> None:
        load_weights(self, path)

    @classmethod
    @override
    def published_settings(cls, folder: Path) -> dict[str, Any]:
        return stored_sizes(folder)

    @classmethod
    @override
    def from_published(cls, folder: str | Path, **settings: Any) -> "WFVAE":
        return cls(**(stored_settings(Path(folder).expanduser()) | settings), path=str(folder))

    @override
    def exported_format(self) -> ExportedFormat:
        tiling = "for which the published form has no place: give it where it is used"
        left_out = {} if self.tiling is None else {"autoencoder.tiling": tiling}
        return ExportedFormat("as WF-VAE is published", partial(export_weights, self), left_out)

    def _moments(self, pixels: Pixels) -> Float[Tensor, "B D t h w"]:
        """Means and log variances of z, ``chunk`` latent frames at a time; gradients pass."""
        if self.chunk is None:
            return self.encoder(pixels, whole()).moments
        stream, parts = Stream(), []
        for part in (pixels[:, :, :1], *pixels[:, :, 1:].split(4 * self.chunk, dim=2)):
            parts += [self.encoder(part, stream).moments] if part.shape[2] else []
            stream.first = False
        return torch.cat(parts, dim=2)

    def _pixels(self, z: Latents) -> Pixels:
        """Frames of z, ``chunk`` latent frames at a time; gradients pass."""
        if self.chunk is None:
            return self.decoder(z, whole()).pixels
        stream, parts, chunks = Stream(), [], z.split(self.chunk, dim=2)
        for number, part in enumerate(chunks):
            stream.last = number == len(chunks) - 1
            parts.append(self.decoder(part, stream).pixels)
            stream.first = False
        return torch.cat(parts, dim=2)
