"""FLOPs of mixers by formula: of what PyTorch's counter cannot see, and for tables of published sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# The import registers ``torch.ops.vidlab.ssd``, which the formula below is for.
from vidlab.layers.mixers.ssd import CHUNKS

# The chunk of a GPU, and so of the meta device: what a model costs does not depend on where it is counted.
CHUNK = CHUNKS["cuda"]


def ssd_flops(tokens: int, heads: int, channels: int, state: int, chunk: int = CHUNK) -> int:
    """FLOPs of the products of the state-space dual, forward, for one clip: linear in the tokens.

    In each chunk C B^T and its product with the values, 2 Q^2 (S + P), and what enters and leaves the state, 4 Q S P; a
    chunk counts whole, and its causal half is not left out, as it is computed. The decays from chunk to chunk are
    elementwise, or of that size, and do not count.

    Args:
        tokens: L.
        heads: N.
        channels: P, of a head's values.
        state: S.
        chunk: Q; fewer tokens are one chunk of their own length.
    """
    chunk = min(chunk, tokens)
    chunks = -(-tokens // chunk)
    return heads * chunks * (2 * chunk * chunk * (state + channels) + 4 * chunk * state * channels)


def _of_operator(x: Sequence[int], dt: Any, A: Any, B: Sequence[int], *rest: Any, **_: Any) -> int:
    batch, tokens, heads, channels = x
    return batch * ssd_flops(tokens, heads, channels, B[-1], rest[-1])


def _of_backward(dy: Any, dstate: Any, *forward: Any, **_: Any) -> int:
    """Two products for each one of the forward pass; what is computed again does not count."""
    return 2 * _of_operator(*forward)


# For ``FlopCounterMode(custom_mapping=...)``.
FLOP_FORMULAS: Mapping[Any, Callable[..., int]] = {
    torch.ops.vidlab.ssd: _of_operator,
    torch.ops.vidlab.ssd_backward: _of_backward,
}


def attention_flops(tokens: int, width: int) -> int:
    """Queries, keys, values and an output projection, 8 L D^2, and the products of attention, 4 L^2 D."""
    return 8 * tokens * width**2 + 4 * tokens**2 * width


def mamba_flops(tokens: int, width: int, heads: int, chunk: int = CHUNK, conv: int = 4) -> int:
    """A Mamba-2 mixer with keys and queries of the width of its values: z, x, B, C and dt, convolution, recurrence."""
    projections = 2 * tokens * width * (4 * width + heads) + 2 * tokens * width * conv
    return projections + ssd_flops(tokens, heads, width // heads, width // heads, chunk)
