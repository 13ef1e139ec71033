"""The transformer block of Open-Sora Plan v1.3, its parameters named as in the released checkpoints."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.layers.attention import Heads, attend_within
from vidlab.layers.block import BlockContext
from vidlab.layers.kernels import AttentionKernel
from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.modulation import add_gated, add_then_modulate, modulate
from vidlab.layers.rope import Rotation, turned_halves


class Attention(nn.Module):
    """Multi-head attention with biased projections to queries, keys, values and out; no QK normalization."""

    def __init__(self, width: int, heads: int, kernel: AttentionKernel) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def within(
        self, x: Float[Tensor, "B L D"], layout: TokenLayout, grid: Grid, rotation: Rotation
    ) -> tuple[Float[Tensor, "B L D"], Heads, Heads]:
        """Self-attention in each group of the layout, and what it compares. Positions are those of the whole grid."""
        q, k, v = (self._split(project(x)) for project in (self.to_q, self.to_k, self.to_v))  # (B, L, N, d) each
        q, k = turned_halves(q, rotation), turned_halves(k, rotation)
        return self.to_out(attend_within(layout, grid, self.kernel, q, k, v).flatten(2)), q, k

    def to_text(
        self, x: Float[Tensor, "B L D"], text: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B L D"]:
        """Attention of every token to the real text tokens; it is the same for each token, whatever the layout."""
        seen = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(text)), self._split(self.to_v(text))
        return self.to_out(self.kernel(q, k, v, seen).flatten(2))  # (B, L, N, d) to (B, L, D)

    def _split(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L N d"]:
        return x.unflatten(-1, (self.heads, -1))


class GELUProjection(nn.Module):
    """Linear and tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L hidden"]:
        """The activated hidden layer."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linears with a hidden width of 4 D. The middle of ``net`` is the place of a dropout that was never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GELUProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The feed-forward branch."""
        return self.net(x)


class OpenSoraPlanBlock(nn.Module):
    """One block: modulated self-attention, plain cross-attention, modulated feed-forward.

    Self-attention and feed-forward read LayerNorm(x) (1 + scale) + shift and are gated; the rows of
    ``scale_shift_table`` (6, D), added to the shared modulation, are shift, scale, gate of the attention, then of the
    feed-forward. Cross-attention reads x itself and has no gate: the released code does so, although the report draws
    it pre-normed.
    """

    def __init__(self, width: int, heads: int, layout: TokenLayout, kernel: AttentionKernel) -> None:
        super().__init__()
        self.layout = layout
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.attn1 = Attention(width, heads, kernel)
        self.attn2 = Attention(width, heads, kernel)
        self.ff = FeedForward(width)

    def forward(self, x: Float[Tensor, "B L D"], context: BlockContext) -> Float[Tensor, "B L D"]:
        """One block."""
        return self.with_queries_and_keys(x, context)[0]

    def with_queries_and_keys(
        self, x: Float[Tensor, "B L D"], context: BlockContext
    ) -> tuple[Float[Tensor, "B L D"], Heads, Heads]:
        """One block, and what its self-attention compares."""
        parts = (context.modulation + self.scale_shift_table.flatten()).chunk(6, dim=-1)  # (B, 1 or L, D) each
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        hidden = modulate(x, shift1, scale1)
        layout = context.layout or self.layout
        mixed, q, k = self.attn1.within(hidden, layout, context.grid, context.rotation)
        x = add_gated(x, gate1, mixed)
        if context.text is None:
            hidden = modulate(x, shift2, scale2)
        else:
            read = self.attn2.to_text(x, context.text, context.text_mask)
            x, hidden = add_then_modulate(x, read, shift2, scale2)
        return add_gated(x, gate2, self.ff(hidden)), q, k
