"""Which process holds which tokens: the groups of a layout are dealt out whole, so that attention needs no exchange."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidlab.layers.layouts import Full3D, Grid, TokenLayout


@dataclass(frozen=True, eq=False)
class Dealing:
    """The tokens of each process, in the order in which it holds them.

    Args:
        tokens: numbers in the sequence, of each process; together each token once.
    """

    tokens: tuple[Int[Tensor, "share"], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each process."""
        return tuple(len(part) for part in self.tokens)

    @cached_property
    def order(self) -> Int[Tensor, "L"]:
        """Tokens of all processes, one process after the other."""
        return torch.cat(self.tokens)

    @cached_property
    def place(self) -> Int[Tensor, "L"]:
        """Where each token of the sequence stands in ``order``."""
        return torch.argsort(self.order)

    @cached_property
    def owner(self) -> Int[Tensor, "L"]:
        """The process of each token of the sequence."""
        numbers = torch.arange(len(self.tokens), device=self.order.device)
        return numbers.repeat_interleave(torch.tensor(self.sizes, device=numbers.device))[self.place]

    def moved(self, other: "Dealing") -> int:
        """Tokens that change their process from this dealing to another."""
        return int((self.owner != other.owner).sum())

    def to(self, device: torch.device) -> "Dealing":
        """The same on a device."""
        return Dealing(tuple(part.to(device) for part in self.tokens))


def contiguous(length: int, ranks: int) -> Dealing:
    """Runs of the sequence, as equal as can be."""
    bounds = _bounds(length, ranks)
    return Dealing(tuple(torch.arange(first, last) for first, last in pairwise(bounds)))


@dataclass(frozen=True, eq=False)
class DealtGroups:
    """The groups of a layout on the processes.

    Args:
        dealing: the tokens of each process, group by group.
        slots: of each process, the number of the local token in each place of its groups; the number of its tokens
            stands for padding.
        masks: of each process, True where a place of a group (of a query, where they differ) sees another; None where
            every place sees all.
    """

    dealing: Dealing
    slots: tuple[Int[Tensor, "groups l"], ...]
    masks: tuple[Bool[Tensor, "groups q l"] | None, ...]


def can_deal(layout: TokenLayout, grid: Grid, ranks: int) -> bool:
    """Whether every process gets a group; full attention has one group, which heads share out instead."""
    return not isinstance(layout, Full3D) and layout.groups(grid) >= ranks


def deal(layout: TokenLayout, grid: Grid, ranks: int) -> DealtGroups:
    """Neighboring groups to each process, as many as can be equal; of any layout, since it is read off its partition.

    Raises:
        ValueError: fewer groups than processes.
    """
    if layout.groups(grid) < ranks:
        raise ValueError(f"{layout} has {layout.groups(grid)} groups of {grid} for {ranks} processes")
    numbered = torch.arange(1, grid.tokens + 1).view(1, -1, 1, 1)  # (B, L, N, d); 0 is padding
    groups = layout.partition(numbered, grid)[..., 0]  # (G, l, M): groups along G or along M
    groups = groups.transpose(1, 2).flatten(0, 1) - 1  # (groups, l)
    mask = layout.key_mask(grid, 1, 1)
    if mask is not None:
        mask = mask.flatten(0, 1).expand(len(groups), -1, -1)  # (groups, 1 or l, l)
    bounds = _bounds(len(groups), ranks)
    own = [groups[first:last] for first, last in pairwise(bounds)]
    seen = [None if mask is None else mask[first:last] for first, last in pairwise(bounds)]
    return DealtGroups(
        Dealing(tuple(part[part >= 0] for part in own)),
        tuple(map(_slots, own)),
        tuple(None if part is None or bool(part.all()) else part for part in seen),
    )


def _slots(groups: Int[Tensor, "groups l"]) -> Int[Tensor, "groups l"]:
    """Real tokens counted from 0, and their number in place of padding."""
    real = groups >= 0
    return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, real.sum())


def _bounds(count: int, ranks: int) -> list[int]:
    return [number * count // ranks for number in range(ranks + 1)]
