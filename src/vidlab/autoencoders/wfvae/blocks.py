"""The layers of WF-VAE: norms, residual blocks, attention within frames, down- and upsampling.

Each takes (frames, stream); those of one frame leave the stream alone.
Attributes are named as in the published weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu
from typing_extensions import override

from vidlab.layers.causal import CausalConv3d, CausalUpsample, Stream

Frames = Float[Tensor, "B C T H W"]
Widened = Float[Tensor, "B D T H W"]


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of each position; statistics never mix frames, so chunks change nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    @override
    def forward(self, x: Frames) -> Frames:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)  # by way of (B, T, H, W, C)


class FrameConv2d(nn.Conv2d):
    """A 2-D convolution of every frame."""

    @override
    def forward(self, x: Frames, stream: Stream | None = None) -> Float[Tensor, "B D T h w"]:
        frames = x.transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
        return super().forward(frames).unflatten(0, (-1, x.shape[2])).transpose(1, 2)  # (B, D, T, h, w)


class ResnetBlock2D(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, and the input added; within each frame."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = FrameConv2d(channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = FrameConv2d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Frames, stream: Stream) -> Frames:
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(self.dropout(silu(self.norm2(h))))


class ResnetBlock3D(nn.Module):
    """norm, SiLU, causal 3x3x3 convolution, twice, and the input added, by a 1x1x1 convolution if widths differ."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    @override
    def forward(self, x: Frames, stream: Stream) -> Widened:
        h = self.conv1(silu(self.norm1(x)), stream)
        h = self.conv2(self.dropout(silu(self.norm2(h))), stream)
        return (self.nin_shortcut(x, stream) if self.nin_shortcut is not None else x) + h


class FrameAttention(nn.Module):
    """Self-attention with one head over the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    @override
    def forward(self, x: Frames, stream: Stream) -> Frames:
        h = self.norm(x)
        # (B, C, T, H, W) to (B, T, H W, C)
        q, k, v = (layer(h, stream).permute(0, 2, 3, 4, 1).flatten(2, 3) for layer in (self.q, self.k, self.v))
        mixed = scaled_dot_product_attention(q, k, v).unflatten(2, x.shape[3:])  # (B, T, H, W, C)
        return x + self.proj_out(mixed.permute(0, 4, 1, 2, 3), stream)


class Downsample2D(nn.Module):
    """Half the rows and columns: a 3x3 convolution of stride 2 with a zero row below and column at the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv2d(channels, channels, 3, stride=2)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C T h w"]:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Downsample3D(nn.Module):
    """Half the frames after the first, half the rows and columns: a causal 3x3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3, stride=2)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C t h w"]:
        return self.conv(pad(x, (0, 1, 0, 1)), stream)


class Upsample2D(nn.Module):
    """Twice the rows and columns: each position repeated, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv2d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C T h w"]:
        return self.conv(interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class Upsample3D(nn.Module):
    """Twice the frames after the first, rows and columns: trilinear, then a causal 3x3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time = CausalUpsample()
        self.conv = CausalConv3d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C t h w"]:
        x = self.time(x, stream)  # 1 + 2 (T - 1) frames; in a stream one waits for the next chunk
        return self.conv(interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="trilinear"), stream)


def middle(in_channels: int, width: int, out_channels: int, attention: bool, dropout: float) -> list[nn.Module]:
    """The layers at the coarsest level: a residual block, attention within frames if asked for, a residual block."""
    between = [FrameAttention(width)] if attention else []
    return [ResnetBlock3D(in_channels, width, dropout), *between, ResnetBlock3D(width, out_channels, dropout)]


def add_low(bands: Frames, low: Float[Tensor, "B 3 T H W"]) -> Frames:
    """Add to the low-pass band, which is the first three channels."""
    return torch.cat([bands[:, :3] + low, bands[:, 3:]], dim=1)
