"""The least that a block moves in bfloat16 where everything between two calls of a library is one kernel.

Products and attention are calls of libraries: they read their operands and write their results. What stands between
two of them is one kernel: it reads what came in and the residual stream once, and writes what goes out once. Rows'
statistics and per-clip vectors are too small to count; sums over tokens (of biases, scales and gates) ride on kernels
that read their operands anyway. Weights are float32: each step casts them, and their gradients back.
"""

from dataclasses import dataclass

BYTES = 2  # of a number


@dataclass(frozen=True)
class Block:
    """Sizes of a block.

    Args:
        tokens: L, of the whole batch.
        width: D.
        hidden: width of the feed-forward.
        text: text tokens, of the whole batch.
        attentions: self-attentions.
        qk_norm: queries and keys are normalized, so that those of cross-attention need a kernel of their own.
        copies: tensors of the size of the tokens that a layout copies around self-attention, beside queries and keys,
            whose rotation may write them in any order.
        inner_norms: branches that are normalized before they are gated.
    """

    tokens: int
    width: int
    hidden: int
    text: int
    attentions: int = 1
    qk_norm: bool = False
    copies: int = 0
    inner_norms: int = 0


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Numbers moved by y = x W + b, dx = dy W, dW = x dy, and by the casts of W (float32 counts twice)."""
    weight = inputs * outputs
    products = 3 * (rows * (inputs + outputs) + weight)
    return products + 2 * (2 + 1) * weight


def attention(queries: int, keys: int, width: int) -> int:
    """Forward q, k, v to y; backward q, k, v, y, dy to dq, dk, dv."""
    forward = 2 * queries + 2 * keys
    return width * (forward + 4 * queries + 4 * keys)


def between(block: Block) -> int:
    """Numbers moved between products and attention, forward and backward."""
    tokens, hidden = block.tokens * block.width, block.tokens * block.hidden
    per_attention = (
        2 + 4  # x to the normed and modulated h; dh, x, dx to dx
        + 4 + 4  # q, k turned; dq, dk turned back
        + 3 + 3  # x + gate y; gate dy, and with y the gate's gradient
    )  # fmt: skip
    cross = (2 + 4) + (3 + 0) + (8 if block.qk_norm else 0)
    feed_forward = 2 + 4 + 3 + 3
    # a kernel that ends one sublayer begins the next: x is neither written nor read between them
    joined = 2 * (block.attentions + 1)
    moved = (block.attentions * per_attention + cross + feed_forward - joined) * tokens
    # gelu(h); dh; copies of a layout; a normalized branch is read again for its gradient, which is then no mere product
    return moved + (2 + 3) * hidden + (4 * block.copies + block.inner_norms) * tokens


def minimum_bytes(block: Block) -> int:
    """Bytes of one block, forward and backward, with cross-attention and a feed-forward."""
    width = block.width
    products = block.attentions * (linear(block.tokens, width, 3 * width) + linear(block.tokens, width, width))
    products += 2 * linear(block.tokens, width, width) + linear(block.text, width, 2 * width)
    products += linear(block.tokens, width, block.hidden) + linear(block.tokens, block.hidden, width)
    attentions = block.attentions * attention(block.tokens, block.tokens, width)
    attentions += attention(block.tokens, block.text, width)
    return BYTES * (products + attentions + between(block))
