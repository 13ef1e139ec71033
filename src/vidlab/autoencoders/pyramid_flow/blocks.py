"""The layers of Pyramid Flow's causal VAE: residual blocks, attention within frames, down- and upsampling.

Each takes (frames, stream). Attributes are named as in the published weights. Statistics of norms and attention stay
within a frame, and convolutions see zeros before the first frame, so chunks of a stream change nothing.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from typing_extensions import override

from vidlab.layers.causal import CausalConv3d, Stream

Frames = Float[Tensor, "B C T H W"]
Widened = Float[Tensor, "B D t h w"]
EPSILON = 1e-6


def causal(
    in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
) -> CausalConv3d:
    """A convolution that keeps the size at stride 1, with zeros on all sides and before the first frame."""
    return CausalConv3d(in_channels, out_channels, kernel, stride, padding=kernel // 2, zeros_before=True)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalization of each frame by itself."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=EPSILON)

    @override
    def forward(self, x: Frames) -> Frames:
        frames = x.transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
        return super().forward(frames).unflatten(0, (-1, x.shape[2])).transpose(1, 2)  # (B, C, T, H, W)


class ResnetBlock(nn.Module):
    """norm, SiLU, causal 3x3x3 convolution, twice, and the input added, by a 1x1x1 convolution if widths differ."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, in_channels)
        self.conv1 = causal(in_channels, out_channels)
        self.norm2 = FrameGroupNorm(groups, out_channels)
        self.conv2 = causal(out_channels, out_channels)
        self.conv_shortcut = causal(in_channels, out_channels, 1) if in_channels != out_channels else None

    @override
    def forward(self, x: Frames, stream: Stream) -> Widened:
        h = self.conv1(silu(self.norm1(x)), stream)
        h = self.conv2(silu(self.norm2(h)), stream)
        return (x if self.conv_shortcut is None else self.conv_shortcut(x, stream)) + h


class FrameAttention(nn.Module):
    """Self-attention with one head over the positions of each frame, and the input added."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = FrameGroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    @override
    def forward(self, x: Frames) -> Frames:
        h = self.group_norm(x).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, T, H W, C)
        mixed = scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](mixed).unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W)


class Middle(nn.Module):
    """The coarsest level: a residual block, attention within frames, a residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    @override
    def forward(self, x: Frames, stream: Stream) -> Frames:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, stream)), stream)


class Downsample(nn.Module):
    """A strided convolution: half the rows and columns, or half the frames after the first."""

    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = causal(channels, channels, stride=stride)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C t h w"]:
        return self.conv(x, stream)


class SpatialUpsample(nn.Module):
    """A convolution to four times the channels, which become twice the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = causal(channels, 4 * channels)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C T h w"]:
        return rearrange(self.conv(x, stream), "b (c q r) t h w -> b c t (h q) (w r)", q=2, r=2)


class TemporalUpsample(nn.Module):
    """A convolution to twice the channels, which become twice the frames; of the video's first two one is dropped.

    1 + n frames give 1 + 2n.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = causal(channels, 2 * channels)

    @override
    def forward(self, x: Frames, stream: Stream) -> Float[Tensor, "B C t H W"]:
        found = rearrange(self.conv(x, stream), "b (c p) t h w -> b c (t p) h w", p=2)
        return found[:, :, 1:] if stream.first else found


class DownBlock(nn.Module):
    """A level of the encoder: residual blocks, then half of everything unless it is the coarsest."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, halves: bool) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, blocks, groups)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, (1, 2, 2))] if halves else [])
        self.temporal_downsamplers = nn.ModuleList([Downsample(out_channels, (2, 1, 1))] if halves else [])

    @override
    def forward(self, x: Frames, stream: Stream) -> Widened:
        for layer in (*self.resnets, *self.downsamplers, *self.temporal_downsamplers):
            x = layer(x, stream)
        return x


class UpBlock(nn.Module):
    """A level of the decoder: residual blocks, then twice everything unless it is the finest."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, doubles: bool) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, blocks, groups)
        self.upsamplers = nn.ModuleList([SpatialUpsample(out_channels)] if doubles else [])
        self.temporal_upsamplers = nn.ModuleList([TemporalUpsample(out_channels)] if doubles else [])

    @override
    def forward(self, x: Frames, stream: Stream) -> Widened:
        for layer in (*self.resnets, *self.upsamplers, *self.temporal_upsamplers):
            x = layer(x, stream)
        return x


def resnets(in_channels: int, out_channels: int, blocks: int, groups: int) -> nn.ModuleList:
    """Residual blocks, the first of which changes the width."""
    return nn.ModuleList(ResnetBlock(out_channels if i else in_channels, out_channels, groups) for i in range(blocks))
