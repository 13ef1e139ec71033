"""PyramidFlowVAE: the causal 8 x 8 x 8 video autoencoder of Pyramid Flow, read from its published folder."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder, ExportedFormat, Posterior
from vidlab.autoencoders.causal_streaming import CausalDecodingStream, CausalEncodingStream
from vidlab.autoencoders.pyramid_flow.blocks import causal
from vidlab.autoencoders.pyramid_flow.coders import Decoder, Encoder
from vidlab.autoencoders.pyramid_flow.published_config import KIND, LEVELS, config_of, settings_of
from vidlab.autoencoders.weight_files import CONFIG, SAFETENSORS, load_by_name
from vidlab.clip import Stride
from vidlab.digests import sealed
from vidlab.errors import UserError
from vidlab.hub import read_json
from vidlab.layers.causal import Stream, whole
from vidlab.tensors import save_tensors

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # of the published implementation

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]


class PyramidFlowVAE(Autoencoder):
    """The causal video VAE of Pyramid Flow (Jin et al. 2024, arXiv 2410.05954, section 3.3), 8 x 8 x 8.

    Of 1 + 8n frames the first has a latent frame of its own, so an image is a video of one frame. Latents are
    ``(z - shift) * scale`` of the encoder's z, with one pair of numbers for the first latent frame, which knows one
    frame, and another for those after it, which know eight.

    Args:
        latent_channels: C.
        widths: channels of the four levels, the finest first.
        encoder_blocks, decoder_blocks: residual blocks of a level.
        groups: of the norms; they divide all widths.
        first_shift, first_scale: of the first latent frame; the defaults are those published with the release of
            miniFLUX. The first release (SD3) has 0.1490 and 1 / 1.8415.
        shift, scale: of the later ones, the same in both releases.
        path: a published folder: ``config.json`` with ``diffusion_pytorch_model.safetensors`` or ``.bin``, which is
            read without running what it may hold besides tensors; None leaves the weights as drawn.

    Raises:
        UserError: a setting out of range, or weights that do not fit.
    """

    published_class = KIND

    def __init__(
        self,
        latent_channels: int = 16,
        widths: Sequence[int] = (128, 256, 512, 512),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        groups: int = 32,
        first_shift: float = -0.04,
        first_scale: float = 1 / 1.8726,
        shift: float = -0.2343,
        scale: float = 1 / 3.0986,
        path: str | None = None,
    ) -> None:
        super().__init__()
        self.sizes = {"latent_channels": latent_channels, "widths": tuple(widths), "encoder_blocks": encoder_blocks,
                      "decoder_blocks": decoder_blocks, "groups": groups}  # fmt: skip
        _check_sizes(self.sizes)
        if min(first_scale, scale) <= 0:
            raise UserError(f"autoencoder.first_scale={first_scale}, autoencoder.scale={scale} must be above 0.")
        self.channels, self.stride = latent_channels, Stride(8, 8, 8, first_frame_alone=True)
        self.shifts, self.scales = (first_shift, shift), (first_scale, scale)
        with torch.device("meta") if path is not None else nullcontext():  # weights that are replaced are not drawn
            self.encoder = Encoder(latent_channels, widths, encoder_blocks, groups)
            self.decoder = Decoder(latent_channels, widths, decoder_blocks, groups)
            self.quant_conv = causal(2 * latent_channels, 2 * latent_channels, 1)
            self.post_quant_conv = causal(latent_channels, latent_channels, 1)
        self.trained = False
        if path is not None:
            _check_folder(Path(path).expanduser(), self.sizes)
            load_by_name(self, path)
            self.trained = True

    @override
    def posterior(self, pixels: Pixels) -> Posterior:
        self.check_clip(pixels)
        return self._encode(pixels, whole())

    @override
    def encode(self, pixels: Pixels) -> Latents:
        return self.posterior(pixels).mode

    @override
    def decode(self, latents: Latents) -> Pixels:
        self.check_latents(latents)
        return self._decode(latents, whole())

    @override
    def encoding_stream(self) -> CausalEncodingStream:
        return CausalEncodingStream(self, self._encode)

    @override
    def decoding_stream(self) -> CausalDecodingStream:
        return CausalDecodingStream(self, self._decode)

    @override
    def check_trained(self) -> None:
        if not self.trained:
            raise UserError(
                "autoencoder.path is not set, so the autoencoder has random weights. Give the folder causal_video_vae "
                "of a Pyramid Flow release (config.json and diffusion_pytorch_model.safetensors or .bin)."
            )

    @classmethod
    @override
    def locate(cls, reference: str) -> str | None:
        place = Path(reference).expanduser()
        return str(place.resolve()) if place.is_file() or (place / CONFIG).is_file() else None

    @classmethod
    @override
    def published_settings(cls, folder: Path) -> dict[str, Any]:
        file = folder / CONFIG
        return settings_of(read_json(file), str(file)) if file.is_file() else {}

    @override
    def exported_format(self) -> ExportedFormat:
        return ExportedFormat("as Pyramid Flow's causal VAE is published", self._write)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.state_dict(), folder / SAFETENSORS)
        (folder / CONFIG).write_text(json.dumps(sealed(config_of(self.sizes)), indent=2) + "\n")

    def _encode(self, pixels: Pixels, stream: Stream) -> Posterior:
        moments = self.quant_conv(self.encoder(pixels, stream), stream)  # (B, 2 C, T', H', W')
        mean, log_variance = moments.float().chunk(2, dim=1)
        shift, scale = self._normalization(mean, stream.first)
        return Posterior((mean - shift) * scale, log_variance.clamp(*LOG_VARIANCE_RANGE) + 2 * scale.log())

    def _decode(self, latents: Latents, stream: Stream) -> Pixels:
        shift, scale = self._normalization(latents, stream.first)
        z = (latents / scale + shift).to(self.post_quant_conv.conv.weight.dtype)
        return self.decoder(self.post_quant_conv(z, stream), stream).float()

    def _normalization(self, like: Latents, first: bool) -> tuple[Float[Tensor, "t 1 1"], Float[Tensor, "t 1 1"]]:
        """Shift and scale of each latent frame, the first of a video having its own."""
        later = torch.arange(like.shape[2], device=like.device).view(-1, 1, 1) >= int(first)
        shift, scale = (
            torch.where(later, values[1], values[0]).to(torch.float32) for values in (self.shifts, self.scales)
        )
        return shift, scale


def _check_sizes(sizes: dict[str, Any]) -> None:
    widths, groups = sizes["widths"], sizes["groups"]
    for name in ("latent_channels", "encoder_blocks", "decoder_blocks", "groups"):
        if sizes[name] < 1:
            raise UserError(f"autoencoder.{name}={sizes[name]} must be 1 or more.")
    if len(widths) != LEVELS or any(width < 1 or width % groups for width in widths):
        raise UserError(f"autoencoder.widths={list(widths)} must be {LEVELS} multiples of autoencoder.groups={groups}.")


def _check_folder(place: Path, sizes: dict[str, Any]) -> None:
    """Refuse a published folder of other sizes before its weights are read."""
    theirs = PyramidFlowVAE.published_settings(place if place.is_dir() else place.parent)
    differing = [name for name, value in theirs.items() if value != _plain(sizes[name])]
    if differing:
        found = ", ".join(f"autoencoder.{name}={_plain(sizes[name])} must be {theirs[name]}" for name in differing)
        raise UserError(f"{place} describes another autoencoder: {found}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
