"""The transformer block of STIV, every choice of its ablation a switch."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from vidlab.layers.attention import CrossAttention, Heads, SelfAttention
from vidlab.layers.kernels import AttentionKernel
from vidlab.layers.layouts import Grid, Spatial, Temporal, TokenLayout
from vidlab.layers.modulation import (
    add_gated,
    add_gated_norm,
    add_then_modulate,
    add_then_scale_and_shift,
    modulate,
    normalize,
    scale_and_shift,
)
from vidlab.layers.rope import Rotation
from vidlab.layers.sequence_parallel.frames import OverTime


@dataclass(frozen=True)
class CausalTemporal(Temporal):
    """Tokens at one place attend to those of the same and of earlier frames."""

    @override
    def key_mask(
        self, grid: Grid, batch: int, heads: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "1 1 l l"]:
        """True where a frame may be seen: on and below the diagonal."""
        return torch.ones(grid.frames, grid.frames, dtype=torch.bool, device=device).tril()[None, None]


@dataclass(frozen=True)
class BlockOptions:
    """The switches of a block; see ``STIV``."""

    qk_norm: bool = True
    sandwich_norm: bool = True
    scale_around_one: bool = False
    shared_adaln: bool = True
    layer_offsets: bool = True
    temporal_attention: bool = True
    temporal_modulation: bool = False
    causal_temporal: bool = False

    @property
    def modulated(self) -> int:
        """How many sublayers have shift, scale and gate: spatial attention, feed-forward, perhaps temporal."""
        return 3 if self.temporal_attention and self.temporal_modulation else 2


@dataclass(frozen=True)
class STIVBlockContext:
    """What every block of one forward pass shares.

    Args:
        grid: the token grid.
        spatial: rotary angles along rows and columns.
        temporal: rotary angles along frames.
        condition: what ``Modulation`` reads: shifts, scales and gates of all blocks where they are shared, else the
            activated singleton condition.
        text: projected text tokens, or None.
        over_time: attention over time where processes share the frames; None where all are here.
        text_mask: which text tokens are real; None where all are.
    """

    grid: Grid
    spatial: Rotation
    temporal: Rotation
    condition: Float[Tensor, "B #L K"]
    text: Float[Tensor, "B S D"] | None
    text_mask: Bool[Tensor, "B S"] | None
    over_time: OverTime | None = None


def adaln(width: int, options: BlockOptions) -> nn.Linear:
    """The singleton condition to shift, scale and gate of each modulated sublayer.

    Everything starts at zero, so gates are closed and a new block is the identity (adaLN-Zero, Peebles & Xie 2023; the
    paper is silent). Where scales are not counted from one they start at one: from zero no gradient would reach them.
    """
    linear = nn.Linear(width, 3 * options.modulated * width)
    reset_adaln(linear, options)
    return linear


def reset_adaln(linear: nn.Linear, options: BlockOptions) -> None:
    """The start of ``adaln``."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    if not options.scale_around_one:
        with torch.no_grad():
            linear.bias.view(options.modulated, 3, -1)[:, 1] = 1


class Modulation(nn.Module):
    """A block's shifts, scales and gates: its own projection or the shared one, plus perhaps a table of its own."""

    def __init__(self, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.parts = options.modulated
        self.own = None if options.shared_adaln else adaln(width, options)
        self.offsets = nn.Parameter(torch.zeros(3 * self.parts * width)) if options.layer_offsets else None

    def forward(self, condition: Float[Tensor, "B #L K"]) -> list[tuple[Tensor, ...]]:
        """(shift, scale, gate), each (B, 1 or L, D), of each modulated sublayer."""
        values = condition if self.own is None else self.own(condition)
        if self.offsets is not None:
            values = values + self.offsets
        chunks = values.chunk(3 * self.parts, dim=-1)  # (B, 1 or L, D) each
        return [chunks[3 * i : 3 * i + 3] for i in range(self.parts)]


class STIVBlock(nn.Module):
    """Spatial attention, temporal attention, cross-attention, feed-forward.

    Spatial attention and feed-forward are modulated: x + gate norm(f(scale norm(x) + shift)) with stateless LayerNorms,
    the outer one only with ``sandwich_norm``. Temporal attention is x + f(norm(x)), zero-initialized, so that a video
    model made of an image model answers like it frame by frame; an outer norm without a gate could not be.
    With ``temporal_modulation`` it is modulated like the others and its gate starts closed. Cross-attention is
    x + f(norm(x)) and zero-initialized. The order of the last three is not printed; it follows the paper's figure 3.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, options: BlockOptions, kernel: AttentionKernel
    ) -> None:
        super().__init__()
        self.options = options
        self.temporal_layout: TokenLayout = CausalTemporal() if options.causal_temporal else Temporal()
        self.modulation = Modulation(width, options)
        self.spatial = SelfAttention(width, heads, options.qk_norm, kernel)
        self.temporal = SelfAttention(width, heads, options.qk_norm, kernel) if options.temporal_attention else None
        self.cross_attention = CrossAttention(width, heads, options.qk_norm, kernel)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Float[Tensor, "B L D"], step: STIVBlockContext) -> Float[Tensor, "B L D"]:
        """One block."""
        return self.with_queries_and_keys(x, step)[0]

    def with_queries_and_keys(
        self, x: Float[Tensor, "B L D"], step: STIVBlockContext
    ) -> tuple[Float[Tensor, "B L D"], Heads, Heads]:
        """One block, and what its spatial attention compares."""
        spatial, mlp, *temporal = self.modulation(step.condition)
        q, k, v = self.spatial.heads_of(self._read(x, spatial), step.spatial)  # (B, L, N, d) each
        x = self._add(x, spatial, self.spatial.attend(q, k, v, Spatial(), step.grid))
        if self.temporal is not None:
            hidden = self._read(x, temporal[0]) if temporal else normalize(x)  # (B, L, D)
            if step.over_time is None:
                mixed = self.temporal(hidden, self.temporal_layout, step.grid, step.temporal)
            else:
                mixed = step.over_time(self.temporal, hidden, step.grid, step.temporal)
            x = self._add(x, temporal[0], mixed) if temporal else x + mixed
        if step.text is None:
            hidden = self._read(x, mlp)
        else:
            read = self.cross_attention(normalize(x), step.text, step.text_mask)
            x, hidden = (add_then_modulate if self.options.scale_around_one else add_then_scale_and_shift)(
                x, read, mlp[0], mlp[1]
            )
        return self._add(x, mlp, self.mlp(hidden)), q, k

    def _read(self, x: Float[Tensor, "B L D"], parts: tuple[Tensor, ...]) -> Float[Tensor, "B L D"]:
        shift, scale, _ = parts
        return (modulate if self.options.scale_around_one else scale_and_shift)(x, shift, scale)

    def _add(self, x: Tensor, parts: tuple[Tensor, ...], branch: Tensor) -> Float[Tensor, "B L D"]:
        return (add_gated_norm if self.options.sandwich_norm else add_gated)(x, parts[2], branch)
