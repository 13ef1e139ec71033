"""Self-attention over space as a feature: which layers of a transformer offer it, and in which form."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from vidlab.features import FrameAttention
from vidlab.layers.layouts import Grid

Heads = Float[Tensor, "B L N d"]


def later_half(layers: Sequence[int]) -> tuple[int, ...]:
    """The later half of some layers, the middle one included: what stands for the decoder of a UNet."""
    return tuple(layers[len(layers) // 2 :])


def frame_attention(q: Heads, k: Heads, grid: Grid) -> FrameAttention:
    """Queries and keys of the latents' tokens frame by frame; those of text or a history come before them."""
    q, k = (x[:, -grid.tokens :].unflatten(1, (grid.frames, grid.places)) for x in (q, k))  # (B, T, L, N, d)
    return FrameAttention(q, k)
