"""Compiling a network block by block: equal blocks share one graph, so that depth costs no time of compilation."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

# A graph for each kind of block, with gradient and without, with padded text and without, and for each bucket's first
# shape; beyond dynamo's own 8 it would raise.
GRAPHS = 64

MODES = {"true": None, "max": "max-autotune-no-cudagraphs"}


def compile_blocks(blocks: Iterable[nn.Module], **settings: Any) -> None:
    """Compile each block as one graph, at its first call; a graph break raises.

    The graph of a block serves all blocks of its class, sizes and layout. A second length of text or video gives a
    graph in which lengths vary; further ones compile nothing.

    Args:
        blocks: of one network.
        settings: of ``torch.compile``, such as its mode.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for block in blocks:
        block.compile(fullgraph=True, **settings)


def any_length(tokens: Shaped[Tensor, "B S *D"]) -> Shaped[Tensor, "B S *D"]:
    """The same tensor; the compiler is told that S, such as the number of text tokens, differs between batches."""
    # without dynamo, whose import takes seconds, nothing has been compiled
    if "torch._dynamo" in sys.modules and tokens.shape[1] > 1 and not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(tokens, 1)
    return tokens
