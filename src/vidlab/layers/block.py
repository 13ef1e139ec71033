"""The transformer block of the DiT family."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vidlab.layers.attention import CrossAttention, Heads, SelfAttention
from vidlab.layers.kernels import AttentionKernel, auto
from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.modulation import ModulationTable, add_gated, add_gated_then_normalize, add_then_modulate, modulate
from vidlab.layers.rope import Rotation


@dataclass(frozen=True)
class BlockContext:
    """What every block of one forward pass shares.

    Args:
        grid: the token grid.
        rotation: rotary angles of the grid.
        modulation: the shared adaLN-single output, (B, 1 or L, 6 D).
        text: projected text tokens, or None.
        text_mask: which text tokens are real; None where all are.
        visible: True where a token (row) sees another (column), in place of the layout; None where there is no history.
        layout: in place of the block's own, where processes share the tokens; None leaves it.
    """

    grid: Grid
    rotation: Rotation
    modulation: Float[Tensor, "B #L six_D"]
    text: Float[Tensor, "B S D"] | None
    text_mask: Bool[Tensor, "B S"] | None
    visible: Bool[Tensor, "L L"] | None = None
    layout: TokenLayout | None = None


class DiTBlock(nn.Module):
    """Self-attention within a token layout, cross-attention to text, feed-forward.

    adaLN-single (Chen et al. 2023, PixArt-alpha, section 2.3): shift, scale and gate of the self-attention and of the
    feed-forward come from one shared projection of the noise level plus a table per block. All gates start at
    zero, so a new block is the identity (Peebles & Xie 2023, adaLN-Zero). GELU is the exact one: in bf16 on a CPU it is
    six times faster than its tanh approximation.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        layout: TokenLayout,
        qk_norm: bool,
        kernel: AttentionKernel = auto,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.table = ModulationTable(6, width)
        self.attention = SelfAttention(width, heads, qk_norm, kernel)
        self.cross_attention = CrossAttention(width, heads, qk_norm, kernel)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "B L D"], context: BlockContext) -> Float[Tensor, "B L D"]:
        """One block."""
        return self.with_queries_and_keys(x, context)[0]

    def with_queries_and_keys(
        self, x: Float[Tensor, "B L D"], context: BlockContext
    ) -> tuple[Float[Tensor, "B L D"], Heads, Heads]:
        """One block, and what its self-attention compares."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.table(context.modulation)  # (B, 1 or L, D) each
        hidden = modulate(x, shift1, scale1)  # (B, L, D)
        q, k, v = self.attention.heads_of(hidden, context.rotation)  # (B, L, N, d) each
        mixed = self.attention.attend(q, k, v, context.layout or self.layout, context.grid, context.visible)
        if context.text is None:
            x = add_gated(x, gate1, mixed)
            hidden = modulate(x, shift2, scale2)
        else:
            x, hidden = add_gated_then_normalize(x, gate1, mixed)
            read = self.cross_attention(hidden, context.text, context.text_mask)
            x, hidden = add_then_modulate(x, read, shift2, scale2)
        return add_gated(x, gate2, self.mlp(hidden)), q, k
