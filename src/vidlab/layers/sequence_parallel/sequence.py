"""The tokens of one forward pass, whole or shared by processes: what a transformer of blocks calls between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from typing_extensions import override

from vidlab.layers.layouts import Full3D, Grid, TokenLayout
from vidlab.layers.sequence_parallel.dealing import Dealing, contiguous
from vidlab.layers.sequence_parallel.layouts import SharedHeads
from vidlab.layers.sequence_parallel.shares import (
    LayerShare,
    Move,
    SequenceLayers,
    move,
    own_groups,
    own_rotation,
    own_tokens,
    share_out,
    whole_sequence,
)
from vidlab.parallel.exchange import Team


class WholeSequence:
    """All tokens are here, in the order of the sequence."""

    def layout(self, layer: int) -> TokenLayout | None:
        """What stands in place of a layer's own layout; None leaves it."""
        return None

    def enter(self, x: Shaped[Tensor, "B L D"]) -> Shaped[Tensor, "B held D"]:
        """The tokens of this process before the first layer."""
        return x

    def arrive(self, layer: int, x: Shaped[Tensor, "B before D"]) -> Shaped[Tensor, "B held D"]:
        """The tokens of this process in a layer, from those in the one before."""
        return x

    def own(self, layer: int, x: Tensor, dim: int) -> Tensor:
        """Of something on all processes, one for each token along ``dim`` or one for all, that of this process."""
        return x

    def own_rotation(self, layer: int, rotation: Tensor) -> Tensor:
        """Of the rotary angles of the whole sequence, those of this process."""
        return rotation

    def leave(self, layer: int, x: Shaped[Tensor, "B held *d"]) -> Shaped[Tensor, "B L *d"]:
        """Tokens of a layer in the order of the sequence, on all processes."""
        return x


@dataclass(frozen=True, eq=False)
class SharedSequence(WholeSequence):
    """The tokens of a clip on the processes of a team.

    Args:
        team: the processes.
        dealings: of each layer.
        layouts: as this process sees them, of each layer.
        moves: before each layer; None where tokens stay.
    """

    team: Team
    dealings: tuple[Dealing, ...]
    layouts: tuple[TokenLayout, ...]
    moves: tuple[Move | None, ...]

    @override
    def layout(self, layer: int) -> TokenLayout:
        """The layout of a layer on this process's tokens."""
        return self.layouts[layer]

    @override
    def enter(self, x: Shaped[Tensor, "B L D"]) -> Shaped[Tensor, "B held D"]:
        """The tokens that the first layer has here."""
        return self.own(0, x, 1)

    @override
    def arrive(self, layer: int, x: Shaped[Tensor, "B before D"]) -> Shaped[Tensor, "B held D"]:
        """One exchange where the layout has changed, else none."""
        step = self.moves[layer]
        return x if step is None else step(x)

    @override
    def own(self, layer: int, x: Tensor, dim: int) -> Tensor:
        """Those of the tokens that the layer has here."""
        return own_tokens(x, self.dealings[layer].tokens[self.team.rank], dim)

    @override
    def own_rotation(self, layer: int, rotation: Tensor) -> Tensor:
        """Those of the tokens that the layer has here."""
        return own_rotation(rotation, self.dealings[layer].tokens[self.team.rank])

    @override
    def leave(self, layer: int, x: Shaped[Tensor, "B held *d"]) -> Shaped[Tensor, "B L *d"]:
        """Gathered from all processes."""
        return whole_sequence(x, self.dealings[layer], self.team)


class SequenceSharing:
    """Shares sequences of a network among a team; what depends on the grid alone is remembered.

    Args:
        team: the processes.
        layers: of the network.
    """

    def __init__(self, team: Team, layers: SequenceLayers) -> None:
        self.team, self.layouts, self.heads = team, layers.layouts, layers.heads
        self._shared: dict[tuple[Grid, torch.device], SharedSequence] = {}

    def of_grid(self, grid: Grid, device: torch.device) -> SharedSequence:
        """A grid of tokens through the layouts."""
        key = (grid, device)
        if key not in self._shared:
            self._shared[key] = self._shared_out(share_out(self.layouts, grid, self.team.size), device)
        return self._shared[key]

    def of_visible(self, visible: Bool[Tensor, "L L"]) -> SharedSequence:
        """Any sequence, in which a token (row) sees another (column) where ``visible`` is True, in every layer."""
        dealing = contiguous(len(visible), self.team.size).to(visible.device)
        layout = SharedHeads(Full3D(), dealing, self.team, self.heads, visible)
        count = len(self.layouts)
        return SharedSequence(self.team, (dealing,) * count, (layout,) * count, (None,) * count)

    def _shared_out(self, shares: Sequence[LayerShare], device: torch.device) -> SharedSequence:
        there = {id(share.dealing): share.dealing.to(device) for share in shares}
        dealings = tuple(there[id(share.dealing)] for share in shares)
        layouts = tuple(
            SharedHeads(share.layout, dealing, self.team, self.heads) if share.groups is None
            else own_groups(share.groups, self.team.rank, device)
            for share, dealing in zip(shares, dealings, strict=True)
        )  # fmt: skip
        before = (shares[0], *shares)
        moves = tuple(
            None if a.dealing is b.dealing else move(a.dealing, b.dealing, self.team, device)
            for a, b in zip(before, shares, strict=False)
        )
        return SharedSequence(self.team, dealings, layouts, moves)


WHOLE = WholeSequence()
