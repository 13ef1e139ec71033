"""WF-VAE weights that begin as a linear code of wavelet bands, so that short trainings start from a picture."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidlab.autoencoders.wfvae.blocks import ResnetBlock3D
from vidlab.autoencoders.wfvae.coders import Decoder, Encoder
from vidlab.errors import UserError

# Bands of the energy path's coarsest level by the energy they have in recordings, each as (band, color): band
# 4 i + 2 j + k as in ``haar3d``; color 0 is gray, 1 red against blue, 2 green against both.
BANDS = (
    (0, 0), (0, 1), (2, 0), (1, 0), (0, 2), (4, 0), (3, 0), (5, 0), (2, 1), (1, 1), (6, 0), (2, 2), (1, 2), (4, 1),
    (7, 0), (3, 1), (4, 2), (3, 2), (5, 1), (6, 1), (5, 2), (6, 2), (7, 1), (7, 2),
)  # fmt: skip
COLORS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
LARGEST = 27.0  # of a band: 8 * 2 from three transforms of values up to 1, sqrt 3 from three colors
SPAN = 4.0  # z of the largest band, which leaves that of recordings at about unit variance
START_LOG_VARIANCE = -8.0  # of z


@torch.no_grad()
def start_as_wavelets(encoder: Encoder, decoder: Decoder, channels: int) -> None:
    """Set weights in place so that z_c is the c-th of ``BANDS``, and decoding puts it back; other pixels' bands are 0.

    The path goes through normalization and SiLU, and stays all but linear: each band enters with both signs, since
    silu(x) - silu(-x) = x, beside channels of +-1 that fix what is divided by. Nothing is frozen: paths that add
    nothing yet have random weights before their last layer, and learn.

    Args:
        encoder, decoder: as drawn.
        channels: of the latents.

    Raises:
        UserError: more channels than bands, or a network too narrow for both signs of each.
    """
    wide, energy = decoder.conv_in.conv.out_channels, encoder.connect_l2.out_channels
    if channels > len(BANDS) or energy < 2 * channels or decoder.energy < channels or wide < 2 * channels + 2:
        raise UserError(
            f"autoencoder.start=wavelets: {channels} latent channels need autoencoder.encoder_energy={2 * channels}, "
            f"decoder_energy={channels} and width={channels // 2 + 1} or more, and are at most {len(BANDS)}. Use "
            "autoencoder.start=random."
        )
    taps = band_taps(channels)
    _start_encoder(encoder, taps, wide)
    _start_decoder(decoder, taps, wide)


def band_taps(channels: int) -> Tensor:
    """(C, 24) orthonormal rows: which mixture of the coarsest bands each latent channel is."""
    colors = nn.functional.normalize(torch.tensor(COLORS), dim=1)
    taps = torch.zeros(channels, 24)
    for row, (band, color) in zip(taps, BANDS, strict=False):
        row[3 * band : 3 * band + 3] = colors[color]
    return taps


def _start_encoder(encoder: Encoder, taps: Tensor, wide: int) -> None:
    channels = len(taps)
    signed = torch.cat([taps, -taps]) / LARGEST
    _zero(encoder.connect_l2)
    encoder.connect_l2.weight[: 2 * channels, :, 1, 1] = signed
    shortcut = _Affine.of(_shortcut(encoder.mid[0]))
    offset = shortcut.weight.shape[1] - encoder.connect_l2.out_channels
    shortcut.weight[: 2 * channels] = 0
    shortcut.weight[: 2 * channels, offset : offset + 2 * channels, 0, 0, 0] = torch.eye(2 * channels)
    shortcut.bias[: 2 * channels] = 0
    shortcut.weight[2 * channels :] *= 0.3  # +-1 outweighs them
    shortcut.bias[2 * channels :] = torch.tensor([1.0, -1.0]).repeat(wide)[: wide - 2 * channels]
    _zero_branches(encoder.mid)
    _zero(encoder.conv_out.conv)
    gain = SPAN * math.sqrt((wide - 2 * channels) / wide)
    out = encoder.conv_out.conv.weight[:, :, -1, 1, 1]  # of the frame itself
    out[:channels, :channels] = gain * torch.eye(channels)
    out[:channels, channels : 2 * channels] = -gain * torch.eye(channels)
    _Affine.of(encoder.conv_out.conv).bias[channels:] = START_LOG_VARIANCE


def _start_decoder(decoder: Decoder, taps: Tensor, wide: int) -> None:
    channels = len(taps)
    into = _Affine.of(decoder.conv_in.conv)
    into.weight[:channels] = 0
    into.weight[:channels, :, -1, 1, 1] = torch.eye(channels)
    into.bias[:channels] = 0
    shortcut = _Affine.of(_shortcut(decoder.mid[-1]))
    shortcut.weight[wide:] = 0
    shortcut.weight[wide : wide + channels, :channels, 0, 0, 0] = torch.eye(channels)
    shortcut.bias[wide:] = 0
    _zero_branches(decoder.mid)
    _zero_branches(decoder.connect_l2)
    _zero(decoder.connect_l2[-1])
    _Affine.of(decoder.connect_l2[-1]).weight[:, :channels, 1, 1] = taps.T * LARGEST / SPAN
    _zero(decoder.connect_l1[-1])
    _zero(decoder.conv_out)


@dataclass(frozen=True)
class _Affine:
    """The numbers of a convolution."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, conv: nn.Module) -> "_Affine":
        assert isinstance(conv, nn.Conv2d | nn.Conv3d) and conv.bias is not None
        return cls(conv.weight, conv.bias)


def _shortcut(block: nn.Module) -> nn.Module:
    assert isinstance(block, ResnetBlock3D)
    if block.nin_shortcut is None:  # as many channels leave as enter
        raise UserError(
            "autoencoder.start=wavelets sets the layer at which the energy path joins, and autoencoder.encoder_energy "
            "at twice autoencoder.width leaves none there. Use more or fewer channels, or autoencoder.start=random."
        )
    return block.nin_shortcut.conv


def _zero_branches(layers: nn.Sequential) -> None:
    """Residual branches and attention add nothing at first."""
    for layer in layers:
        for name in ("conv2", "proj_out"):
            if hasattr(layer, name):
                _zero(getattr(layer, name).conv)


def _zero(conv: nn.Module) -> None:
    for parameter in conv.parameters():
        parameter.zero_()
