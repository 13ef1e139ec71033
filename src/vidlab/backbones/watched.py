"""Self-attention over space as a feature: which layers of a transformer offer it, and in which form."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vidlab.features import SELF_ATTENTION, Feature, FrameAttention
from vidlab.layers.attention import Heads
from vidlab.layers.block import BlockContext
from vidlab.layers.layouts import Grid
from vidlab.layers.sequence_parallel.sequence import WHOLE, WholeSequence
from vidlab.structure import Additions, with_addition


def later_half(layers: Sequence[int]) -> tuple[int, ...]:
    """The later half of some layers, the middle one included: what stands for the decoder of a UNet."""
    return tuple(layers[len(layers) // 2 :])


def frame_attention(q: Heads, k: Heads, grid: Grid) -> FrameAttention:
    """Queries and keys of the latents' tokens frame by frame; those of text or a history come before them."""
    q, k = (x[:, -grid.tokens :].unflatten(1, (grid.frames, grid.places)) for x in (q, k))  # (B, T, L, N, d)
    return FrameAttention(q, k)


def through_blocks(
    run: Callable[..., Any],
    blocks: Iterable[Any],
    watched: Collection[int],
    tokens: Float[Tensor, "B L D"],
    context: BlockContext,
    requested: frozenset[str],
    sequence: WholeSequence = WHOLE,
    additions: Additions | None = None,
) -> tuple[Float[Tensor, "B held D"], dict[str, Feature]]:
    """Tokens behind all blocks, and their self-attention where it is requested.

    Args:
        run: of a denoiser: calls a block, or a method of it, on tokens and context.
        blocks: which also offer ``with_queries_and_keys``.
        watched: numbers of the blocks whose attention is the feature.
        tokens, context: what the first block reads, of the whole sequence.
        requested: names of features.
        sequence: how its tokens are shared by processes; what is returned are those held here behind the last block.
        additions: what is added behind each block.

    Raises:
        ValueError: additions to a shared sequence.
    """
    if additions is not None and sequence is not WHOLE:
        raise ValueError("additions behind blocks need the whole sequence in one process")
    found: list[FrameAttention] = []
    tokens = sequence.enter(tokens)  # (B, held, D)
    for number, block in enumerate(blocks):
        tokens, own = sequence.arrive(number, tokens), context_of(number, context, sequence)
        if SELF_ATTENTION not in requested:
            tokens = with_addition(run(block, tokens, own), additions, number)
            continue
        tokens, q, k = run(block.with_queries_and_keys, tokens, own)
        tokens = with_addition(tokens, additions, number)
        if number in watched:
            found.append(frame_attention(sequence.leave(number, q), sequence.leave(number, k), context.grid))
    return tokens, {SELF_ATTENTION: tuple(found)} if SELF_ATTENTION in requested else {}


def context_of(layer: int, context: BlockContext, sequence: WholeSequence) -> BlockContext:
    """What a block reads besides its tokens, of those held here."""
    layout = sequence.layout(layer)
    if layout is None:
        return context
    rotation, modulation = sequence.own_rotation(layer, context.rotation), sequence.own(layer, context.modulation, 1)
    return replace(context, rotation=rotation, modulation=modulation, visible=None, layout=layout)
