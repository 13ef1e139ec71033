"""What processes that share the tokens of a clip send each other, by layer, as a function of the layouts."""

from dataclasses import dataclass

from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.sequence_parallel.layouts import head_shares
from vidlab.layers.sequence_parallel.shares import LayerShare, SequenceLayers, share_out


@dataclass(frozen=True)
class LayerExchange:
    """What one layer sends in a training step of one clip, forward and backward, all processes together.

    Args:
        layout: of the layer.
        moved: numbers of the residual stream: tokens that change their process before the layer.
        shared: numbers of queries, keys, values and of what attention returns, where heads are shared out.
    """

    layout: TokenLayout
    moved: int
    shared: int

    def bytes_sent(self, itemsize: int) -> int:
        """Bytes, given those of one number of the type that is computed in."""
        return (self.moved + self.shared) * itemsize


def exchange_by_layer(layers: SequenceLayers, grid: Grid, ranks: int, recomputed: bool = False) -> list[LayerExchange]:
    """What every layer sends.

    A token that changes its process sends D numbers, once for each change of layout. Where heads are shared out, each
    token sends its queries, keys and values of all heads of other processes, and gets back as much of one of them: with
    n processes about 4 (n - 1) / n D numbers (DeepSpeed-Ulysses). Either is sent once more, as gradients, in the
    backward pass.

    Args:
        layers: of a network.
        grid: of its tokens.
        ranks: processes that share a clip.
        recomputed: blocks are computed again in the backward pass, with what they exchange within.
    """
    shares = share_out(layers.layouts, grid, ranks)
    before = (shares[0], *shares)
    within = 3 if recomputed else 2
    moves = within if layers.moves_within else 2
    return [
        LayerExchange(
            after.layout,
            moves * layers.width * first.dealing.moved(after.dealing),
            within * _of_heads(after, layers, ranks),
        )
        for first, after in zip(before, shares, strict=False)
    ]


def _of_heads(share: LayerShare, layers: SequenceLayers, ranks: int) -> int:
    if share.groups is not None:
        return 0
    per_head, heads = layers.width // layers.heads, head_shares(layers.heads, ranks)
    others = (size * (layers.heads - own) for size, own in zip(share.dealing.sizes, heads, strict=True))
    return 4 * per_head * sum(others)
