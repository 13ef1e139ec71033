"""Token layouts as one of several processes sees them: its own groups, or all tokens of some heads."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from vidlab.layers.layouts import Grid, Groups, TokenLayout, Tokens
from vidlab.layers.sequence_parallel.dealing import Dealing
from vidlab.parallel.exchange import Team, exchanged


@dataclass(frozen=True, eq=False)
class OwnGroups(TokenLayout):
    """The groups that were dealt to this process; nothing is exchanged.

    Args:
        slots: (groups, l), the local token in each place of a group; their number stands for padding.
        mask: True where a place sees another; None where all are seen.
        real: the places of groups, counted through all of them, that hold a token.
    """

    slots: Int[Tensor, "groups l"]
    mask: Bool[Tensor, "groups q l"] | None
    real: Int[Tensor, "held"]

    @property
    def held(self) -> int:
        """Tokens of this process."""
        return len(self.real)

    @override
    def groups(self, grid: Grid) -> int:
        return len(self.slots)

    @override
    def partition(self, x: Tokens, grid: Grid) -> Groups:
        if self.slots.numel() > self.held:
            x = torch.cat([x, x.new_zeros(len(x), 1, *x.shape[2:])], dim=1)[:, self.slots.flatten()]
        return x.unflatten(1, self.slots.shape).flatten(0, 1)  # (B groups, l, N, d)

    @override
    def restore(self, x: Groups, grid: Grid) -> Tokens:
        x = x.unflatten(0, (-1, len(self.slots))).flatten(1, 2)  # (B, groups l, N, d)
        return x[:, self.real] if self.slots.numel() > self.held else x

    @override
    def key_mask(
        self, grid: Grid, batch: int, heads: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "G 1 q l"] | None:
        return None if self.mask is None else self.mask[:, None].repeat(batch, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class SharedHeads(TokenLayout):
    """All tokens for a share of the heads: DeepSpeed-Ulysses (Jacobs et al. 2023), with shares that need not be equal.

    Args:
        inner: how tokens of the whole sequence are partitioned.
        dealing: the tokens of each process.
        team: the processes.
        heads: of all processes; one that gets none waits for the others.
        visible: True where a token (row) sees another (column), in place of ``inner``; None leaves it to that.
    """

    inner: TokenLayout
    dealing: Dealing
    team: Team
    heads: int
    visible: Bool[Tensor, "L L"] | None = None

    @property
    def shares(self) -> tuple[int, ...]:
        """Heads of each process."""
        return head_shares(self.heads, self.team.size)

    @property
    def _as_it_is(self) -> bool:
        return self.visible is not None or not self.shares[self.team.rank]

    @override
    def groups(self, grid: Grid) -> int:
        return self.inner.groups(grid)

    @override
    def padded(self, grid: Grid) -> int:
        return self.inner.padded(grid)

    @override
    def partition(self, x: Tokens, grid: Grid) -> Groups:
        own, held, sizes = self.shares[self.team.rank], x.shape[1], self.dealing.sizes
        rows = x.permute(2, 1, 0, 3).flatten(0, 1)  # (N L_r, B, d): the heads of a process are neighbors
        got = exchanged(rows, [held * n for n in self.shares], [own * size for size in sizes], self.team)
        parts = got.split([own * size for size in sizes])
        whole = torch.cat([part.view(own, size, *part.shape[1:]) for part, size in zip(parts, sizes, strict=True)], 1)
        whole = whole[:, self.dealing.place].permute(2, 1, 0, 3)  # (B, L, N_r, d)
        return whole if self._as_it_is else self.inner.partition(whole, grid)

    @override
    def restore(self, x: Groups, grid: Grid) -> Tokens:
        whole = x if self._as_it_is else self.inner.restore(x, grid)  # (B, L, N_r, d)
        own, sizes = self.shares[self.team.rank], self.dealing.sizes
        held = sizes[self.team.rank]
        rows = whole[:, self.dealing.order].permute(1, 2, 0, 3).flatten(0, 1)  # (L N_r, B, d)
        got = exchanged(rows, [size * own for size in sizes], [held * n for n in self.shares], self.team)
        parts = got.split([held * n for n in self.shares])
        local = torch.cat([part.view(held, n, *part.shape[1:]) for part, n in zip(parts, self.shares, strict=True)], 1)
        return local.permute(2, 0, 1, 3)  # (B, L_r, N, d)

    @override
    def key_mask(
        self, grid: Grid, batch: int, heads: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "G M q l"] | None:
        if self.visible is not None:
            return self.visible[None, None]
        return None if self._as_it_is else self.inner.key_mask(grid, batch, self.shares[self.team.rank], device)


def head_shares(heads: int, ranks: int) -> tuple[int, ...]:
    """Heads of each process, as equal as can be."""
    return tuple((number + 1) * heads // ranks - number * heads // ranks for number in range(ranks))
