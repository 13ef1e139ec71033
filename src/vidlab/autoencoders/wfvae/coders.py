"""Encoder and decoder of WF-VAE: a causal convolutional backbone beside the flow of energy in wavelet sub-bands.

Open-Sora Plan report (arXiv 2412.00131), section 2.1 and figure 2; arXiv 2411.17459, section 3.2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from vidlab.autoencoders.base import Posterior
from vidlab.autoencoders.wfvae.blocks import (
    ChannelNorm,
    Downsample2D,
    Downsample3D,
    FrameConv2d,
    ResnetBlock2D,
    ResnetBlock3D,
    Upsample2D,
    Upsample3D,
    add_low,
    middle,
)
from vidlab.layers.causal import CausalConv3d, CausalSequential, Stream
from vidlab.layers.wavelets import at_least_single, causal_haar3d, haar2d, inverse_causal_haar3d, inverse_haar2d

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # of the published implementation, which took it from latent diffusion

Clip = Float[Tensor, "B C T H W"]
LowBand = Float[Tensor, "B 3 t y x"]


@dataclass(frozen=True)
class WaveletFlow:
    """The bands of the energy path below the first level; the wavelet loss (eq. 2) compares encoder's and decoder's.

    Args:
        level2: (B, 12, (T + 1) / 2, H / 4, W / 4), the spatial transform of the first level's low band.
        level3: (B, 24, (T + 3) / 4, H / 8, W / 8), the transform in space and time of the second's.
    """

    level2: Float[Tensor, "B 12 T H W"]
    level3: Float[Tensor, "B 24 t h w"]

    @property
    def bands(self) -> tuple[Tensor, Tensor]:
        """Both levels."""
        return self.level2, self.level3


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives: (B, 2 C, T', H', W') means and log variances, and its bands."""

    moments: Float[Tensor, "B D T H W"]
    flow: WaveletFlow

    @property
    def posterior(self) -> Posterior:
        """Of z, in single precision."""
        return posterior_of(self.moments)


@dataclass(frozen=True)
class Decoded:
    """What the decoder gives: pixels and its bands; in a stream the bands are those of the chunk's own frames."""

    pixels: Float[Tensor, "B 3 T H W"]
    flow: WaveletFlow


def posterior_of(moments: Float[Tensor, "B D T H W"]) -> Posterior:
    """Mean and bounded log variance of z, (B, C, T', H', W') each, of the encoder's 2 C channels."""
    mean, log_variance = at_least_single(moments).chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))


@dataclass(frozen=True)
class CoderSizes:
    """Sizes of an encoder or decoder.

    Args:
        latent_channels: C.
        width: channels at the finest level; twice and four times as many at the next.
        energy: channels by which the energy path enters, or leaves, the backbone.
        blocks: residual blocks of a level.
        connect_blocks: residual blocks before the decoder's bands; the encoder has none.
        attention: whether the middle attends within each frame.
        dropout: share of activations dropped in residual blocks.
    """

    latent_channels: int
    width: int
    energy: int
    blocks: int
    connect_blocks: int
    attention: bool
    dropout: float


class Encoder(nn.Module):
    """Pixels to moments, 4 x 8 x 8 times fewer positions.

    Haar bands in space and time (24) enter the backbone, and those of their low band (12, then 24) are concatenated
    one and two levels down.

    Args:
        sizes: of this encoder.
        gain: of the wavelets in space and time.
    """

    def __init__(self, sizes: CoderSizes, gain: float) -> None:
        super().__init__()
        width, energy, dropout = sizes.width, sizes.energy, sizes.dropout
        self.gain = gain
        self.down1 = CausalSequential(
            FrameConv2d(24, width, 3, padding=1),
            *[ResnetBlock2D(width, dropout) for _ in range(sizes.blocks)],
            Downsample2D(width),
        )
        self.down2 = CausalSequential(
            FrameConv2d(width + energy, 2 * width, 3, padding=1),
            *[ResnetBlock3D(2 * width, 2 * width, dropout) for _ in range(sizes.blocks)],
            Downsample3D(2 * width),
        )
        self.connect_l1 = FrameConv2d(12, energy, 3, padding=1)
        self.connect_l2 = FrameConv2d(24, energy, 3, padding=1)
        self.mid = CausalSequential(*middle(2 * width + energy, 4 * width, 4 * width, sizes.attention, dropout))
        self.norm_out = ChannelNorm(4 * width)
        self.conv_out = CausalConv3d(4 * width, 2 * sizes.latent_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "B 3 T H W"], stream: Stream) -> Encoded:
        """1 + 4n frames, in later chunks of a stream 4n, of sides that are multiples of 8."""
        bands = causal_haar3d(pixels, stream, self.gain)  # (B, 24, (T + 1) / 2, H / 2, W / 2)
        level2 = haar2d(bands[:, :3])  # (B, 12, (T + 1) / 2, H / 4, W / 4)
        level3 = causal_haar3d(level2[:, :3], stream, self.gain)  # (B, 24, (T + 3) / 4, H / 8, W / 8)
        # bands are in single precision even where weights are not
        into1, into2, into3 = (level.to(self.connect_l1.weight.dtype) for level in (bands, level2, level3))
        h = self.down1(into1, stream)  # (B, width, (T + 1) / 2, H / 4, W / 4)
        h = self.down2(torch.cat([h, self.connect_l1(into2)], dim=1), stream)  # (B, 2 width, (T + 3) / 4, H / 8, W / 8)
        h = self.mid(torch.cat([h, self.connect_l2(into3)], dim=1), stream)  # (B, 4 width, (T + 3) / 4, H / 8, W / 8)
        return Encoded(self.conv_out(silu(self.norm_out(h)), stream), WaveletFlow(level2, level3))


class Decoder(nn.Module):
    """Latents to pixels: the encoder's mirror.

    The middle and the next level emit ``energy`` further channels, from which bands are made; each inverse transform
    is added to the low band of the level above.

    Args:
        sizes: of this decoder.
        gain: of the wavelets in space and time.
    """

    def __init__(self, sizes: CoderSizes, gain: float) -> None:
        super().__init__()
        width, dropout = sizes.width, sizes.dropout
        wide = 4 * width
        self.gain, self.energy = gain, sizes.energy
        self.conv_in = CausalConv3d(sizes.latent_channels, wide, 3, padding=1)
        self.mid = CausalSequential(*middle(wide, wide, wide + sizes.energy, sizes.attention, dropout))
        self.up2 = CausalSequential(
            *[ResnetBlock3D(wide, wide, dropout) for _ in range(sizes.blocks)],
            Upsample3D(wide),
            ResnetBlock3D(wide, wide + sizes.energy, dropout),
        )
        self.up1 = CausalSequential(
            *[ResnetBlock3D(2 * width if i else wide, 2 * width, dropout) for i in range(sizes.blocks)],
            Upsample2D(2 * width),
            ResnetBlock3D(2 * width, 2 * width, dropout),
        )
        self.layer = CausalSequential(ResnetBlock3D(2 * width, width, dropout), ResnetBlock3D(width, width, dropout))
        self.connect_l1 = self._connection(sizes, 12)
        self.connect_l2 = self._connection(sizes, 24)
        self.norm_out = ChannelNorm(width)
        self.conv_out = FrameConv2d(width, 24, 3, padding=1)

    @staticmethod
    def _connection(sizes: CoderSizes, bands: int) -> CausalSequential:
        blocks = [ResnetBlock3D(sizes.energy, sizes.energy, sizes.dropout) for _ in range(sizes.connect_blocks)]
        return CausalSequential(*blocks, FrameConv2d(sizes.energy, bands, 3, padding=1))

    def forward(self, latents: Clip, stream: Stream) -> Decoded:
        """Every frame that can be known by now.

        The frames of the chunk's last latent wait for the next, in which the interpolation looks; ``finish`` gives
        them where none comes.
        """
        h = self.mid(self.conv_in(latents.to(self.conv_out.weight.dtype), stream), stream)
        # (B, 4 width + energy, T', H', W'); the last channels leave for the bands
        level3 = self.connect_l2(h[:, -self.energy :], stream)  # (B, 24, T', H', W')
        low = inverse_causal_haar3d(level3, stream, self.gain)  # of a whole clip (B, 3, 2 T' - 1, 2 H', 2 W')
        h = h[:, : -self.energy]
        for layer in self._before_upsampling():
            h = layer(h, stream)
        return self._fine(h, low, level3, stream)

    def finish(self, stream: Stream) -> Float[Tensor, "B 3 T H W"] | None:
        """The frames that still wait at the end of a stream, None where there are none."""
        stream.first, stream.last = False, True
        waiting = stream.recall(self._upsampling().time)
        low = stream.recall(self)
        if waiting is None or low is None:
            return None
        return self._fine(waiting[:, :, :0], low[:, :, :0], None, stream).pixels

    def _fine(self, h: Clip, low: LowBand, level3: Tensor | None, stream: Stream) -> Decoded:
        """From the interpolation in time on."""
        for layer in list(self.up2)[-2:]:  # twice the frames after the first, rows and columns
            h = layer(h, stream)  # in the end (B, 4 width + energy, (T + 1) / 2, H / 4, W / 4)
        level2 = self.connect_l1(h[:, -self.energy :], stream)  # (B, 12, (T + 1) / 2, H / 4, W / 4)
        level2 = add_low(level2, self._in_step(low, h.shape[2], stream))
        h = self.up1(h[:, : -self.energy], stream)  # (B, 2 width, (T + 1) / 2, H / 2, W / 2)
        h = self.layer(h, stream)  # (B, width, (T + 1) / 2, H / 2, W / 2)
        bands = self.conv_out(silu(self.norm_out(h)))  # (B, 24, (T + 1) / 2, H / 2, W / 2)
        bands = add_low(bands, inverse_haar2d(level2))
        flow = WaveletFlow(level2, level3 if level3 is not None else bands[:, :, :0, ::4, ::4])
        return Decoded(inverse_causal_haar3d(bands, stream, self.gain), flow)

    def _in_step(self, low: LowBand, frames: int, stream: Stream) -> Float[Tensor, "B 3 u y x"]:
        """The low band comes without delay, the backbone one frame later: hold what is ahead."""
        held = stream.recall(self)
        low = low if held is None else torch.cat([held, low], dim=2)
        stream.keep(self, low[:, :, frames:])
        return low[:, :, :frames]

    def _before_upsampling(self) -> list[nn.Module]:
        return list(self.up2)[:-2]

    def _upsampling(self) -> Upsample3D:
        layer = self.up2[-2]
        assert isinstance(layer, Upsample3D)
        return layer
