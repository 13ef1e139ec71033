"""A video DiT in stock PyTorch, nothing but its public functions: what ``gpu_step.py`` holds vidlab's models against.

The same sizes and products as ``vidlab.backbones.dit``: self-attention with normalized, rotated queries and keys within
a partition of the tokens, cross-attention to text, a feed-forward, and modulation from one shared vector plus a table
for each block. Nothing is written out for parity or for other shapes: lengths must divide.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Partition = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def partitions(kind: str, grid: tuple[int, int, int], k: int) -> Partition:
    """To groups along the heads and back, of (B, N, L, d): ``full``, ``space``, ``time``, ``single`` or ``group``."""
    frames, places = grid[0], grid[1] * grid[2]
    if kind == "full":
        return lambda x: x, lambda x: x
    if kind == "space":
        return _cut(frames, False), _joined(frames, False)
    if kind == "time":
        return _cut(places, True), _joined(places, True)
    if kind == "single":
        return _cut(k, True), _joined(k, True)
    return (
        lambda x: x.unflatten(2, (-1, k, k)).transpose(2, 3).flatten(3, 4).flatten(1, 2),
        lambda x: x.unflatten(1, (-1, k)).unflatten(3, (-1, k)).transpose(2, 3).flatten(2, 4),
    )


def _cut(groups: int, every: bool) -> Callable[[Tensor], Tensor]:
    """Into so many runs, or every so many tokens."""
    if every:
        return lambda x: x.unflatten(2, (-1, groups)).transpose(2, 3).flatten(1, 2)
    return lambda x: x.unflatten(2, (groups, -1)).flatten(1, 2)


def _joined(groups: int, every: bool) -> Callable[[Tensor], Tensor]:
    if every:
        return lambda x: x.unflatten(1, (-1, groups)).transpose(2, 3).flatten(2, 3)
    return lambda x: x.unflatten(1, (-1, groups)).flatten(2, 3)


def rotate_half(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on (B, N, L, d), tables (L, d / 2) in the dtype of x."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class ReferenceBlock(nn.Module):
    """One block."""

    def __init__(self, width: int, heads: int, partition: Partition) -> None:
        super().__init__()
        self.heads, self.partition = heads, partition
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.to_q, self.to_kv, self.from_text = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.offsets = nn.Parameter(torch.zeros(6 * width))

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts D) to ``parts`` tensors (B, N, L, d)."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor, shared: Tensor, text: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(B, L, D) from tokens, the shared modulation (B, 1, 6 D), text (B, S, D) and tables (L, d / 2)."""
        width = x.shape[-1:]
        shift, scale, gate, shift2, scale2, gate2 = (shared + self.offsets).chunk(6, dim=-1)
        q, k, v = self.split(self.to_qkv(F.layer_norm(x, width) * (1 + scale) + shift), 3)
        q, k = (rotate_half(F.rms_norm(one, one.shape[-1:]).to(v.dtype), cosine, sine) for one in (q, k))
        into, back = self.partition
        mixed = back(F.scaled_dot_product_attention(into(q), into(k), into(v)))
        x = x + gate * self.from_heads(mixed.transpose(1, 2).flatten(2))
        (q,), (k, v) = self.split(self.to_q(F.layer_norm(x, width)), 1), self.split(self.to_kv(text), 2)
        x = x + self.from_text(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        hidden = F.gelu(self.up(F.layer_norm(x, width) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.down(hidden)


class ReferenceDiT(nn.Module):
    """Patches in, patches out.

    Args:
        channels: of a patch.
        width, heads, depth: of the blocks.
        text_width: of text tokens.
        grid: tokens in (frames, rows, columns).
        cycle: kinds of partition, taken in turn.
        k: of skips.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        heads: int,
        depth: int,
        text_width: int,
        grid: tuple[int, int, int],
        cycle: Sequence[str],
        k: int = 4,
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(channels, width), nn.Linear(width, channels)
        self.text, self.modulation = nn.Linear(text_width, width), nn.Linear(width, 6 * width)
        ways = [partitions(cycle[number % len(cycle)], grid, k) for number in range(depth)]
        self.blocks = nn.ModuleList(ReferenceBlock(width, heads, way) for way in ways)
        angles = torch.outer(
            torch.arange(grid[0] * grid[1] * grid[2]), 100.0 ** -torch.linspace(0, 1, width // heads // 2)
        )
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, patches: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """(B, L, C) from patches (B, L, C), an embedded noise level (B, D) and text (B, S, E)."""
        x, text = self.embed(patches), self.text(text)
        shared = self.modulation(F.silu(level))[:, None]
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        for block in self.blocks:
            x = block(x, shared, text, cosine, sine)
        return self.head(x)
