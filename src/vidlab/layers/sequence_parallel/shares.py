"""How the tokens of a clip go through the layers of a network on several processes: pure functions of the layouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vidlab.layers.layouts import Grid, TokenLayout
from vidlab.layers.sequence_parallel.dealing import Dealing, DealtGroups, can_deal, contiguous, deal
from vidlab.layers.sequence_parallel.layouts import OwnGroups
from vidlab.parallel.exchange import Team, exchanged, gathered


@dataclass(frozen=True, eq=False)
class LayerShare:
    """What a layer asks of the processes.

    Args:
        layout: of the layer.
        dealing: the tokens that each process holds in it.
        groups: those dealt; None where heads are shared out instead.
    """

    layout: TokenLayout
    dealing: Dealing
    groups: DealtGroups | None


@dataclass(frozen=True)
class SequenceLayers:
    """What of a network decides how its tokens are shared.

    Args:
        layouts: of its attentions, in their order; the tokens go on in that of the last.
        heads: of each attention.
        width: D.
        moves_within: whether tokens move within blocks, which move them again where they are recomputed; else between.
    """

    layouts: tuple[TokenLayout, ...]
    heads: int
    width: int
    moves_within: bool = False


def share_out(layouts: Sequence[TokenLayout], grid: Grid, ranks: int) -> tuple[LayerShare, ...]:
    """The tokens of each process in every layer.

    Groups of a layout are dealt where every process gets one. In layers of full attention, and where a grid has fewer
    groups than processes, tokens stay where they are and heads are shared out.

    Args:
        layouts: of each layer.
        grid: the token grid.
        ranks: processes.
    """
    dealt = {layout: deal(layout, grid, ranks) for layout in dict.fromkeys(layouts) if can_deal(layout, grid, ranks)}
    current = next(iter(dealt.values())).dealing if dealt else contiguous(grid.tokens, ranks)
    shares = []
    for layout in layouts:
        current = dealt[layout].dealing if layout in dealt else current
        shares.append(LayerShare(layout, current, dealt.get(layout)))
    return tuple(shares)


def own_groups(groups: DealtGroups, rank: int, device: torch.device) -> OwnGroups:
    """The layout of a process that holds whole groups."""
    slots, mask = groups.slots[rank], groups.masks[rank]
    real = (slots.flatten() < groups.dealing.sizes[rank]).nonzero().flatten()
    return OwnGroups(slots.to(device), None if mask is None else mask.to(device), real.to(device))


@dataclass(frozen=True, eq=False)
class Move:
    """From one dealing to another: one exchange, in which each token that changes its process is sent once.

    Args:
        leaving: own tokens in the order in which they are sent.
        sent, received: tokens to and from each process.
        arriving: those received in the order in which they are held.
        team: the processes.
    """

    leaving: Int[Tensor, "L_from"]
    sent: tuple[int, ...]
    received: tuple[int, ...]
    arriving: Int[Tensor, "L_to"]
    team: Team

    def __call__(self, x: Shaped[Tensor, "B L_from D"]) -> Shaped[Tensor, "B L_to D"]:
        """The tokens this process holds afterwards."""
        rows = x.transpose(0, 1)[self.leaving]  # (L_from, B, D)
        return exchanged(rows, self.sent, self.received, self.team)[self.arriving].transpose(0, 1)


def move(before: Dealing, after: Dealing, team: Team, device: torch.device) -> Move:
    """The exchange of this process that brings tokens from one dealing to another."""
    orders = [torch.argsort(after.place[tokens]) for tokens in before.tokens]
    own = before.tokens[team.rank]
    sent = torch.bincount(after.owner[own], minlength=team.size)
    received = torch.bincount(before.owner[after.tokens[team.rank]], minlength=team.size)
    arrived = torch.cat([tokens[order] for tokens, order in zip(before.tokens, orders, strict=True)])
    arrived = arrived[after.owner[arrived] == team.rank]  # in the order in which they come
    arriving = torch.argsort(after.place[arrived])
    return Move(orders[team.rank].to(device), tuple(sent.tolist()), tuple(received.tolist()), arriving.to(device), team)


def own_tokens(x: Shaped[Tensor, "*b L n d"], tokens: Int[Tensor, "L_r"], dim: int) -> Shaped[Tensor, "*b L_r n d"]:
    """The tokens of a process along a dimension; what is alike for all tokens stays."""
    return x if x.shape[dim] == 1 else x.index_select(dim, tokens)


def own_rotation(rotation: Tensor, tokens: Int[Tensor, "L_r"]) -> Tensor:
    """Rotary angles (*clips, L, 1, half, 2) of the tokens of a process."""
    return own_tokens(rotation, tokens, -4)


def whole_sequence(x: Float[Tensor, "B L_r *d"], dealing: Dealing, team: Team) -> Float[Tensor, "B L *d"]:
    """The tokens of all processes in the order of the sequence, on each of them; see ``gathered`` for the gradient."""
    return gathered(x.transpose(0, 1), dealing.sizes, team)[dealing.place].transpose(0, 1)
