"""DOVER's technical branch in its published form (Wu et al. 2023, arXiv:2211.04894).

A Video Swin Transformer (Liu et al. 2022, arXiv:2106.13230) with the gated relative position biases of FAST-VQA (Wu et
al. 2022, arXiv:2207.02595, section 3.2) over fragments of frames, and a head that scores each place.
"""

from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from vidlab.perceptual.weights import load_weights, take

FRAMES, SIDE = 32, 224
GRID, FRAGMENT = 7, 32
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Size = tuple[int, int, int]
WINDOW: Size = (8, 7, 7)
PATCH: Size = (2, 4, 4)
APART = -100.0  # added between tokens that only the cyclic shift made neighbors
BACKBONE, HEAD = "technical_backbone", "technical_head"  # of the published file, which holds another branch as well


class WindowAttention(nn.Module):
    """Attention within windows, with biases by relative position.

    Args:
        width: channels.
        heads: of the attention.
        window: tokens in time, height and width.
        gated: whether tokens of one fragment have biases of their own.
    """

    fragment_position_bias_table: nn.Parameter | None

    def __init__(self, width: int, heads: int, window: Size, gated: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        entries = prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, heads))
        own = nn.Parameter(torch.zeros(entries, heads)) if gated else None
        self.register_parameter("fragment_position_bias_table", own)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B W L D"], apart: Bool[Tensor, "W L L"], distance: Int[Tensor, "W L L"]
    ) -> Float[Tensor, "B W L D"]:
        """Attend.

        Args:
            x: tokens by window.
            apart: pairs of tokens that shall not see each other.
            distance: fragments from one token to the other, along height and width together.
        """
        batch, windows, length, width = x.shape
        parts = self.qkv(x).reshape(batch, windows, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5)  # (B, W, N, L, D / N) each
        bias = self.bias(distance) + APART * apart[:, None]  # (W, N, L, L)
        out = F.scaled_dot_product_attention(q, k, v, bias)
        return self.proj(out.transpose(2, 3).reshape(batch, windows, length, width))

    def bias(self, distance: Int[Tensor, "W L L"]) -> Float[Tensor, "W N L L"]:
        """The biases; with a gate g, which is the distance of the fragments, g * relative + (1 - g) * own.

        FAST-VQA's equation 3 has a gate of 0 or 1; the code that the published weights were trained with multiplies by
        the distance itself.
        """
        places = relative_positions(self.window)
        relative = self.relative_position_bias_table[places].permute(2, 0, 1)  # (N, L, L)
        if self.fragment_position_bias_table is None:
            return relative.expand(len(distance), -1, -1, -1)
        own = self.fragment_position_bias_table[places].permute(2, 0, 1)
        gate = distance[:, None].float()
        return gate * relative + (1 - gate) * own


@cache
def relative_positions(window: Size) -> Int[Tensor, "L L"]:
    """The row of a table of biases for each pair of a window's tokens."""
    axes = [torch.arange(side) for side in window]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, L)
    apart = places[:, :, None] - places[:, None] + torch.tensor(window)[:, None, None] - 1  # (3, L, L), from 0
    _, rows, columns = (2 * side - 1 for side in window)
    return (apart[0] * rows + apart[1]) * columns + apart[2]


def to_windows(x: Tensor, window: Size) -> Tensor:
    """(B, T, H, W, D) as (B, windows, tokens of a window, D)."""
    batch, *size, width = x.shape
    pieces = [number for side, own in zip(size, window, strict=True) for number in (side // own, own)]
    return x.reshape(batch, *pieces, width).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, prod(window), width)


def from_windows(x: Tensor, window: Size, size: Size) -> Tensor:
    """The reverse of ``to_windows``."""
    counts = [side // own for side, own in zip(size, window, strict=True)]
    return x.reshape(len(x), *counts, *window, -1).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *size, -1)


def shift_of(size: Size, window: Size) -> Size:
    """Half a window along each axis on which there are several."""
    t, h, w = (own // 2 if side > own else 0 for side, own in zip(size, window, strict=True))
    return t, h, w


def window_pairs(size: Size, window: Size, shift: Size) -> tuple[Bool[Tensor, "W L L"], Int[Tensor, "W L L"]]:
    """Which tokens of the shifted windows were no neighbors before, and how many fragments lie between them."""
    regions, fragments = [], []
    for side, own, moved, count in zip(size, window, shift, (1, *window[1:]), strict=True):
        place = torch.arange(side)
        inner = (place >= side - own).long() + (place >= side - moved) if moved else torch.zeros_like(place)
        regions.append(inner)
        fragments.append(torch.roll(place * count // side, -moved))
    by_axis = [torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None] for axes in (regions, fragments)]
    label, fragment = (to_windows(axes, window)[0] for axes in by_axis)  # (W, L, 3) each
    apart = (label[:, :, None] != label[:, None]).any(-1)
    return apart, (fragment[:, :, None] - fragment[:, None]).abs().sum(-1)


class MLP(nn.Module):
    """Two layers with a GELU, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the width."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention within windows, shifted by half a window or not, then an MLP; each behind a norm, with a shortcut."""

    def __init__(self, width: int, heads: int, window: Size, gated: bool, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, gated)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "B T H W D"]) -> Float[Tensor, "B T H W D"]:
        """Sides are multiples of the window's."""
        _, t, h, w, _ = x.shape
        size = (t, h, w)
        shift = shift_of(size, self.window) if self.shifted else (0, 0, 0)
        there, back = [-s for s in shift], list(shift)
        windows = to_windows(torch.roll(self.norm1(x), there, (1, 2, 3)), self.window)
        attended = self.attn(windows, *window_pairs(size, self.window, shift))
        x = x + torch.roll(from_windows(attended, self.window, size), back, (1, 2, 3))
        return x + self.mlp(self.norm2(x))


class Downsample(nn.Module):
    """Four neighbors become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "B T H W D"]) -> Float[Tensor, "B T H/2 W/2 2*D"]:
        """Neighbors in order: rows first."""
        parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Layer(nn.Module):
    """Blocks at one size, then a smaller one."""

    def __init__(self, width: int, heads: int, window: Size, depth: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, window, gated=not last, shifted=at % 2 == 1) for at in range(depth)
        )
        self.downsample = None if last else Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, D) to (B, T, H / 2, W / 2, 2 D), unchanged in shape for the last."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches as tokens."""

    def __init__(self, width: int, patch: Size) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, T / patch, H / patch, W / patch, D)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 4, 1))


class VideoSwin(nn.Module):
    """The backbone; the defaults are those of the published file.

    Args:
        width: channels of the first layer; each further one has twice those of the one before.
        depths: blocks of each layer.
        heads: of the attention, by layer.
        window: tokens in time, height and width.
        patch: pixels of a token.
    """

    def __init__(
        self,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: Size = WINDOW,
        patch: Size = PATCH,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch)
        last = len(depths) - 1
        self.layers = nn.ModuleList(
            Layer(width * 2**at, own, window, depth, at == last)
            for at, (depth, own) in enumerate(zip(depths, heads, strict=True))
        )
        self.width = width * 2**last
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w D"]:
        """Features of normalized frames, whose sides each layer divides into whole windows."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Head(nn.Module):
    """Scores each place by two convolutions of size 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_hid, self.fc_last = nn.Conv3d(width, 64, 1), nn.Conv3d(64, 1, 1)

    def forward(self, x: Float[Tensor, "B t h w D"]) -> Float[Tensor, "B t h w"]:
        """A score for each place."""
        return self.fc_last(F.gelu(self.fc_hid(x.permute(0, 4, 1, 2, 3))))[:, 0]


class DoverTechnical(nn.Module):
    """Backbone and head with random weights; ``load_dover`` gives the trained ones."""

    def __init__(self, backbone: VideoSwin | None = None) -> None:
        super().__init__()
        self.technical_backbone = backbone or VideoSwin()
        self.technical_head = Head(self.technical_backbone.width)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "T H W 3"]) -> float:
        """The mean score of a clip of spliced fragments, with pixels of 0 to 255."""
        x = (pixels - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        return float(self.technical_head(self.technical_backbone(x.permute(3, 0, 1, 2)[None])).mean())


def fragments(frames: UInt8[Tensor, "T H W 3"]) -> Float[Tensor, "T 224 224 3"]:
    """A square of 32 pixels out of the middle of each cell of a grid of 7 x 7, spliced, at the frames' own resolution.

    DOVER draws the places of the squares at random; the middle makes a score the same each time. Smaller frames are
    enlarged first, until both sides have 224 pixels.
    """
    pixels = frames.float()
    height, width = frames.shape[1:3]
    if min(height, width) < SIDE:
        factor = SIDE / min(height, width)
        height, width = max(SIDE, int(height * factor)), max(SIDE, int(width * factor))
        pixels = F.interpolate(pixels.permute(0, 3, 1, 2), (height, width), mode="bilinear").permute(0, 2, 3, 1)
    rows, columns = (torch.cat([_places(side, at) for at in range(GRID)]) for side in (height, width))
    return pixels[:, rows][:, :, columns]


def _places(side: int, cell: int) -> Tensor:
    """The pixels taken of a cell, along one axis."""
    first = min(side // GRID * cell, side - FRAGMENT) + max(0, side // GRID - FRAGMENT) // 2
    return torch.arange(first, first + FRAGMENT)


@cache
def load_dover(weights: str) -> DoverTechnical:
    """The trained network, once per process.

    Args:
        weights: the published ``DOVER.pth``, or its tensors as .safetensors; its aesthetic branch is not read.

    Raises:
        UserError: there is no such file, or it is of another network, such as DOVER-Mobile.
    """
    model, found = DoverTechnical(), load_weights(weights)
    for name, value in model.state_dict().items():
        value.copy_(take(found, name, tuple(value.shape), weights))
    return model
