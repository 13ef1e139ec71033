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


def no_view(tokens: Shaped[Tensor, "B L D"]) -> Shaped[Tensor, "B L D"]:
    """The same numbers in a tensor of its own: a block that is given a view would be compiled once more for it."""
    return tokens.clone() if _before_a_graph() and tokens._is_view() else tokens


def any_length(tokens: Shaped[Tensor, "B S *D"]) -> Shaped[Tensor, "B S *D"]:
    """The same tensor; the compiler is told that S, such as the number of text tokens, differs between batches."""
    if _before_a_graph() and tokens.shape[1] > 1:
        torch._dynamo.maybe_mark_dynamic(tokens, 1)
    return tokens


def _before_a_graph() -> bool:
    """Whether what runs now may be read by a compiled block."""
    # without dynamo, whose import takes seconds, nothing has been compiled; programs have a stand-in for the package
    # itself (vidlab.lab.cli.lean_imports), not for what is in it
    return not torch.compiler.is_compiling() and "torch._dynamo.eval_frame" in sys.modules
