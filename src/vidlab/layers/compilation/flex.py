"""torch's flex attention, compiled where it runs: masks are part of the kernel, and blocks of keys that are hidden from
all queries of a block cost nothing.

Not compiled it writes all scores out, which no GPU should do. On a CPU it runs so: torch has no backward pass of it
there.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.layers.compilation.blocks import GRAPHS
from vidlab.layers.compilation.fused import has_triton
from vidlab.layers.layouts import Grid, TokenLayout

Heads = Float[Tensor, "B L N d"]
Keys = Float[Tensor, "B S N d"]

BLOCK = 128  # queries and keys to a block
SMALLEST_HEAD = 16  # channels, of the compiled kernel
KEPT = 64  # block masks; shapes of a run are few


def runs_compiled(q: Heads) -> bool:
    """Whether there is a compiled kernel for such queries: in 16 bits, on a CUDA GPU, with Triton."""
    wide_enough = q.shape[-1] >= SMALLEST_HEAD and q.dtype in (torch.bfloat16, torch.float16)
    return wide_enough and q.is_cuda and (torch.compiler.is_compiling() or has_triton())


def flex(q: Heads, k: Keys, v: Keys, mask: Bool[Tensor, "#B #N #L S"] | None = None) -> Heads:
    """(B, L, N, d) from queries, keys and values; ``mask`` is True at keys that may be seen."""
    if mask is None:
        return _called(_unmasked, q, k, v)
    return _called(_masked, q, k, v, mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1]))


def flex_padded(q: Heads, k: Heads, v: Heads, layout: TokenLayout, grid: Grid, batch: int) -> Heads:
    """Attention within the groups of a layout of which the last are padded.

    Args:
        q: (G, l, M, d), partitioned.
        k: as q.
        v: as q.
        layout: pads at the end of groups.
        grid: of the tokens.
        batch: clips.
    """
    heads = q.shape[2] * q.shape[0] // (batch * layout.groups(grid))
    make = _blocks if torch.compiler.is_compiling() else _kept_blocks
    return _called(_in_blocks, q, k, v, make(layout, grid, batch, heads, q.device))


def block_mask(counts: Int[Tensor, "G M"], length: int) -> Any:
    """The ``BlockMask`` of sequences of which so many keys, the first ones, may be seen.

    Args:
        counts: for each group and head.
        length: of queries and of keys.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j < counts[b, h]

    blocks = -(-length // BLOCK)
    numbers = torch.arange(blocks, device=counts.device, dtype=torch.int32)
    whole, some = (counts // BLOCK).int()[..., None], (counts % BLOCK > 0).int()[..., None]  # (G, M, 1), in blocks
    complete = numbers < length // BLOCK  # of queries: in no other does every query see every key of a block
    only = torch.where(numbers == 0, whole.clamp(max=blocks - 1), 0)[..., None, :]  # the first entry alone counts
    return BlockMask.from_kv_blocks(
        kv_num_blocks=torch.where(complete, some, whole + some),
        kv_indices=torch.where(complete[:, None], only, numbers),
        full_kv_num_blocks=torch.where(complete, whole, 0),
        full_kv_indices=numbers.expand(*counts.shape, blocks, blocks).contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


def _blocks(layout: TokenLayout, grid: Grid, batch: int, heads: int, device: torch.device) -> Any:
    mask = layout.key_mask(grid, batch, heads, device)
    assert mask is not None
    return block_mask(mask[:, :, 0].sum(-1, dtype=torch.int32), mask.shape[-1])


@lru_cache(maxsize=KEPT)
def _kept_blocks(layout: TokenLayout, grid: Grid, batch: int, heads: int, device: torch.device) -> Any:
    with torch.inference_mode(False), torch.no_grad():  # validation and training share it
        return _blocks(layout, grid, batch, heads, device)


def _unmasked(q: Heads, k: Keys, v: Keys) -> Heads:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found: Tensor = flex_attention(q, k, v)
    return found.transpose(1, 2)


def _masked(q: Heads, k: Keys, v: Keys, mask: Bool[Tensor, "B N L S"]) -> Heads:
    # the mask of one batch of captions: to find its blocks would take longer than they save
    from torch.nn.attention.flex_attention import flex_attention

    def visible(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(mask[b, h, i, j], score, -float("inf"))

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found: Tensor = flex_attention(q, k, v, score_mod=visible)
    return found.transpose(1, 2)


def _in_blocks(q: Heads, k: Keys, v: Keys, blocks: Any) -> Heads:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found: Tensor = flex_attention(q, k, v, block_mask=blocks)
    return found.transpose(1, 2)


def _called(function: Callable[..., Heads], q: Heads, k: Keys, v: Keys, *rest: Any) -> Heads:
    if q.is_cuda and not torch.compiler.is_compiling():
        return _compiled(function)(q, k, v, *rest)
    return function(q, k, v, *rest)


@cache
def _compiled(function: Callable[..., Heads]) -> Callable[..., Heads]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(function, fullgraph=True, dynamic=False)
