"""The temporal module: attention along frames at every place, after each spatial pair of the UNet."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.layers.attention import zero_init
from vidlab.layers.compilation.fused import fused
from vidlab.layers.kernels import auto

NORMS = ("frame", "clip")
# Groups of a GroupNorm, as in Stable Diffusion; and of narrow ones, whose groups would be single channels, of which the
# deepest level has one place: normalized alone, any number becomes zero.
GROUPS, FEW_GROUPS, NARROW = 32, 8, 128


def group_count(channels: int) -> int:
    """Groups of a GroupNorm over ``channels``."""
    return math.gcd(FEW_GROUPS if channels < NARROW else GROUPS, channels)


def frame_positions(frames: int, width: int, like: Tensor) -> Float[Tensor, "T D"]:
    """Sinusoidal positions of frames (Vaswani et al. 2017, section 3.5), sines at even channels."""
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(frames, device=like.device)[:, None] * rates  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(like.dtype)


def affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    """Gain, offset and epsilon."""
    return norm.weight, norm.bias, norm.eps


@fused
def normed(
    x: Float[Tensor, "P T D"], gain: Float[Tensor, "D"], offset: Float[Tensor, "D"], eps: float,
    added: Float[Tensor, "T D"] | None = None,
) -> Float[Tensor, "P T D"]:  # fmt: skip
    """LayerNorm, and what is added to it; in the dtype of x."""
    found = F.layer_norm(x, x.shape[-1:], gain, offset, eps)  # float32 under autocast on a GPU
    return (found if added is None else found + added.to(found.dtype)).to(x.dtype)


@fused
def add_then_norm(
    x: Float[Tensor, "P T D"], branch: Float[Tensor, "P T D"], gain: Float[Tensor, "D"], offset: Float[Tensor, "D"],
    eps: float, added: Float[Tensor, "T D"] | None = None,
) -> tuple[Float[Tensor, "P T D"], Float[Tensor, "P T D"]]:  # fmt: skip
    """x + branch, and ``normed`` of it: what one sublayer leaves and the next one reads."""
    x = x + branch
    return x, normed.function(x, gain, offset, eps, added)


@fused
def gated(x: Float[Tensor, "P T two_H"]) -> Float[Tensor, "P T H"]:
    """One half times GELU of the other."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class TemporalAttention(nn.Module):
    """Pre-norm self-attention along frames; positions are added after the norm, queries, keys and values have no bias.

    Args:
        width: D.
        heads: N.
        head_dim: channels of a head; None shares D among the heads.
        positions: add sinusoidal positions.
    """

    def __init__(self, width: int, heads: int, head_dim: int | None = None, positions: bool = True) -> None:
        super().__init__()
        self.heads, self.positions = heads, positions
        inner = width if head_dim is None else heads * head_dim
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "P T D"]) -> Float[Tensor, "P T D"]:
        """What the attention adds, without the residual."""
        return self.mixed(normed(x, *affine(self.norm), self.added(x)))

    def added(self, x: Float[Tensor, "P T D"]) -> Float[Tensor, "T D"] | None:
        """What is added to normalized tokens: positions, if any, in float32 at least."""
        if not self.positions:
            return None
        precise = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        return frame_positions(x.shape[1], x.shape[2], precise)

    def mixed(self, x: Float[Tensor, "P T D"]) -> Float[Tensor, "P T D"]:
        """The attention of normalized tokens at their positions."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))  # (P, T, N, d) each
        return self.out(auto(q, k, v).flatten(2))  # (P, T, D)


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020) of four times the width, and the LayerNorm before it, which ``TemporalModule`` applies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "P T D"]) -> Float[Tensor, "P T D"]:
        """What it adds to the residual stream, of normalized tokens."""
        return self.down(gated(self.up(x)))


class TemporalModule(nn.Module):
    """The motion module of AnimateDiff (Guo et al. 2023, arXiv 2307.04725), which HARIVO's are said to be similar to.

    GroupNorm, a linear map, two attentions along frames, a gated feed-forward, and a linear map that starts at zero: a
    new module returns what it is given. It has 2,259,520 parameters at 320 channels.

    Args:
        channels: C, of the UNet at its place.
        heads: attention heads.
        norm: statistics of the GroupNorm: of each ``frame``, as in AnimateDiff's code, or of the whole ``clip``, as in
            diffusers. Weights trained with one do not serve the other.
    """

    def __init__(self, channels: int, heads: int, norm: str = "frame") -> None:
        super().__init__()
        self.per_frame = norm == "frame"
        self.norm = nn.GroupNorm(group_count(channels), channels, eps=1e-6)
        self.into = nn.Linear(channels, channels)
        self.attentions = nn.ModuleList(TemporalAttention(channels, heads) for _ in range(2))
        self.feed_forward = GatedFeedForward(channels)
        self.out = nn.Linear(channels, channels)
        zero_init(self.out)

    def forward(self, x: Float[Tensor, "BT C H W"], frames: int) -> Float[Tensor, "BT C H W"]:
        """Mix the frames of each clip, place by place.

        Args:
            x: frame-wise features, the frames of a clip in a row.
            frames: T.
        """
        clips = x.unflatten(0, (-1, frames))  # (B, T, C, H, W)
        if self.per_frame:
            y = self.norm(x).unflatten(0, (-1, frames))  # (B, T, C, H, W)
        else:
            y = self.norm(clips.transpose(1, 2)).transpose(1, 2)  # statistics over T, H and W
        y = self.into(y.permute(0, 3, 4, 1, 2).flatten(0, 2))  # (B H W, T, C)
        attentions: Any = self.attentions
        first, second = attentions
        h = normed(y, *affine(first.norm), first.added(y))
        y, h = add_then_norm(y, first.mixed(h), *affine(second.norm), second.added(y))
        y, h = add_then_norm(y, second.mixed(h), *affine(self.feed_forward.norm))
        y = self.out(y + self.feed_forward(h))
        batch, _, channels, height, width = clips.shape
        y = y.view(batch, height, width, frames, channels).permute(0, 3, 4, 1, 2)  # (B, T, C, H, W)
        return x + y.flatten(0, 1)  # (B T, C, H, W)
