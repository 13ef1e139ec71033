"""Encoder and decoder of Pyramid Flow's causal VAE: four levels, of which three halve frames, rows and columns."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu
from typing_extensions import override

from vidlab.autoencoders.pyramid_flow.blocks import DownBlock, FrameGroupNorm, Middle, UpBlock, causal
from vidlab.layers.causal import Stream

Frames = Float[Tensor, "B C T H W"]


class Encoder(nn.Module):
    """Pixels to (B, 2 C, T', H', W') means and log variances, before ``quant_conv``.

    Args:
        channels: C of the latents.
        widths: channels of each level, the finest first; the last level keeps the size.
        blocks: residual blocks of a level.
        groups: of the norms.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        self.conv_in = causal(3, widths[0])
        levels = enumerate(pairwise((widths[0], *widths)))
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, blocks, groups, halves=level < len(widths) - 1)
            for level, (before, width) in levels
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = FrameGroupNorm(groups, widths[-1])
        self.conv_out = causal(widths[-1], 2 * channels)

    @override
    def forward(self, pixels: Float[Tensor, "B 3 T H W"], stream: Stream) -> Float[Tensor, "B D t h w"]:
        h = self.conv_in(pixels.to(self.conv_out.conv.weight.dtype), stream)  # (B, widths[0], T, H, W)
        for block in self.down_blocks:
            h = block(h, stream)
        h = self.mid_block(h, stream)  # (B, widths[-1], 1 + (T - 1) / 8, H / 8, W / 8)
        return self.conv_out(silu(self.conv_norm_out(h)), stream)


class Decoder(nn.Module):
    """The encoder's mirror: latents, after ``post_quant_conv``, to pixels.

    Args:
        channels, widths, blocks, groups: as of ``Encoder``, the finest level first too.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        coarse_first = tuple(reversed(widths))
        self.conv_in = causal(channels, coarse_first[0])
        self.mid_block = Middle(coarse_first[0], groups)
        levels = enumerate(pairwise((coarse_first[0], *coarse_first)))
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, blocks, groups, doubles=level < len(widths) - 1) for level, (before, width) in levels
        )
        self.conv_norm_out = FrameGroupNorm(groups, widths[0])
        self.conv_out = causal(widths[0], 3)

    @override
    def forward(self, z: Frames, stream: Stream) -> Float[Tensor, "B 3 t h w"]:
        h = self.mid_block(self.conv_in(z, stream), stream)  # (B, widths[-1], T', H', W')
        for block in self.up_blocks:
            h = block(h, stream)
        return self.conv_out(silu(self.conv_norm_out(h)), stream)  # (B, 3, 1 + 8 (T' - 1), 8 H', 8 W')
