"""The dual-stream MM-DiT block: text and video with weights of their own, one attention over both."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vidlab.backbones.mmdim.conditions import at_places
from vidlab.features.memory import Memory
from vidlab.layers.attention import QKNorm, compared
from vidlab.layers.kernels import AttentionKernel
from vidlab.layers.modulation import add_gated, modulate
from vidlab.layers.rope import Rotation

Heads = Float[Tensor, "B L N d"]


@dataclass(frozen=True)
class DualBlockContext:
    """What every dual-stream block of one forward pass shares.

    Args:
        rotation: rotary angles of the video; text stands at the origin, where nothing turns.
        mask: which tokens may see which; None where all may see all.
        text_condition: activated condition of the text.
        video_condition: activated condition of the frames.
        video_places: which row of it each token of the frames reads; None where it has one for each or for all.
    """

    rotation: Float[Tensor, "V 1 half 2"]
    mask: Bool[Tensor, "#B 1 L M"] | None
    text_condition: Float[Tensor, "B 1 D"]
    video_condition: Float[Tensor, "B _ D"]
    video_places: Int[Tensor, "V"] | None = None


class Stream(nn.Module):
    """The weights of one stream of a block: modulation, projections with biases, feed-forward; 18 D^2."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = QKNorm(width // heads)
        self.k_norm = QKNorm(width // heads)
        self.out = nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def parts(self, condition: Float[Tensor, "B _ D"], places: Int[Tensor, "L"] | None = None) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the feed-forward."""
        return at_places(self.modulation(condition), places).chunk(6, dim=-1)  # (B, 1 or L, D) each

    def heads_of(
        self, x: Float[Tensor, "B L D"], parts: tuple[Tensor, ...], rotation: Rotation | None = None
    ) -> tuple[Heads, Heads, Heads]:
        """Queries and keys of unit root mean square, turned where there is a rotation, and values."""
        q, k, v = self.qkv(modulate(x, parts[0], parts[1])).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if rotation is None:
            return self.q_norm(q), self.k_norm(k), v
        return compared(q, self.q_norm, rotation), compared(k, self.k_norm, rotation), v  # (B, L, N, d) each

    def finish(
        self, x: Float[Tensor, "B L D"], mixed: Float[Tensor, "B L D"], parts: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """What the attention gave, and the feed-forward."""
        _, _, gate1, shift2, scale2, gate2 = parts
        x = add_gated(x, gate1, self.out(mixed))
        return add_gated(x, gate2, self.mlp(modulate(x, shift2, scale2)))


class DualStreamBlock(nn.Module):
    """MM-DiT (Esser et al. 2024, figure 2b) with three-axis rotary positions, as Pyramid Flow has it.

    36 D^2 weights. All gates start at zero, so a new block is the identity. Without text the video is alone.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.text = Stream(width, heads, mlp_ratio)
        self.video = Stream(width, heads, mlp_ratio)

    def forward(
        self, text: Float[Tensor, "B S D"] | None, video: Float[Tensor, "B V D"], context: DualBlockContext
    ) -> tuple[Float[Tensor, "B S D"] | None, Float[Tensor, "B V D"]]:
        """One block on both streams."""
        return self.with_queries_and_keys(text, video, context)[:2]

    def with_queries_and_keys(
        self, text: Float[Tensor, "B S D"] | None, video: Float[Tensor, "B V D"], context: DualBlockContext
    ) -> tuple[Float[Tensor, "B S D"] | None, Float[Tensor, "B V D"], Heads, Heads]:
        """One block on both streams, and what its attention compares: of [text, video]."""
        text, video, q, memory = self._both(text, video, context)
        return text, video, q, memory.tensors[0]

    def remember(
        self, text: Float[Tensor, "B S D"] | None, video: Float[Tensor, "B V D"], context: DualBlockContext
    ) -> tuple[Float[Tensor, "B S D"] | None, Float[Tensor, "B V D"], Memory]:
        """One block on both streams; and keys and values of [text, video]."""
        text, video, _, memory = self._both(text, video, context)
        return text, video, memory

    def resume(self, video: Float[Tensor, "B V D"], context: DualBlockContext, memory: Memory) -> Tensor:
        """What one block would make of frames after the text and frames of ``memory``.

        Args:
            video: the frames.
            context: theirs; its mask has columns for the tokens of the memory too.
            memory: of ``remember``.
        """
        return self._both(None, video, context, memory)[1]

    def _both(
        self,
        text: Float[Tensor, "B S D"] | None,
        video: Float[Tensor, "B V D"],
        context: DualBlockContext,
        memory: Memory | None = None,
    ) -> tuple[Float[Tensor, "B S D"] | None, Float[Tensor, "B V D"], Heads, Memory]:
        """Text and video after the block, queries, and keys and values of all that was looked at."""
        video_parts = self.video.parts(context.video_condition, context.video_places)
        q, k, v = self.video.heads_of(video, video_parts, context.rotation)  # (B, V, N, d) each
        if text is None:
            if memory is not None:
                k, v = (torch.cat(pair, dim=1) for pair in zip(memory.tensors, (k, v), strict=True))  # (B, M, N, d)
            mixed = self.kernel(q, k, v, context.mask).flatten(2)  # (B, V, D)
            return None, self.video.finish(video, mixed, video_parts), q, Memory((k, v))
        text_parts = self.text.parts(context.text_condition)
        pairs = zip(self.text.heads_of(text, text_parts), (q, k, v), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in pairs)  # (B, S + V, N, d)
        mixed = self.kernel(q, k, v, context.mask).flatten(2)  # (B, S + V, D)
        mixed_text, mixed_video = mixed.split([text.shape[1], video.shape[1]], dim=1)  # (B, S, D), (B, V, D)
        text = self.text.finish(text, mixed_text, text_parts)
        return text, self.video.finish(video, mixed_video, video_parts), q, Memory((k, v))
