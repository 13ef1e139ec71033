"""What the processes of one sequence send each other, with its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override


@dataclass(frozen=True)
class Team:
    """The processes that share the tokens of a clip.

    Args:
        rank: of this process among them.
        size: how many there are.
        group: through which they talk; None is all processes.
    """

    rank: int
    size: int
    group: Any = None


def make_team(size: int) -> Team:
    """This process's team, of neighbors in rank; every process must call this, in the same order as other groups.

    Raises:
        ValueError: the processes do not divide into such teams.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if size < 1 or world % size:
        raise ValueError(f"{world} processes do not divide into teams of {size}")
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    return Team(rank % size, size, groups[rank // size])


def exchanged(x: Tensor, sent: Sequence[int], received: Sequence[int], team: Team) -> Tensor:
    """Rows of ``x`` from and to every process of the team.

    Args:
        x: (sum of sent, ...), the rows for process 0 first.
        sent: rows for each process.
        received: rows of each process.
        team: the processes, each of which calls this.

    Returns:
        (sum of received, ...), the rows of process 0 first. In the backward pass gradients go the other way.
    """
    out: Tensor = _Exchange.apply(x, tuple(sent), tuple(received), team)
    return out


def gathered(x: Tensor, rows: Sequence[int], team: Team) -> Tensor:
    """The rows of all processes, on each of them.

    What follows is computed alike on each process, from the same numbers. The gradient of a process is that of its own
    rows, times the number of processes: the mean over processes, which is what data parallelism takes of a parameter's
    gradients, is then the gradient of the one loss, whether a parameter is used before this (on a share of the tokens)
    or after it (on all).

    Args:
        x: (rows of this process, ...).
        rows: of each process.
        team: the processes, each of which calls this.
    """
    out: Tensor = _Gather.apply(x, tuple(rows), team)
    return out


class _Exchange(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, sent: tuple[int, ...], received: tuple[int, ...], team: Team) -> Tensor:
        ctx.back = (received, sent, team)
        return _all_to_all(x, sent, received, team)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(gradients[0], *ctx.back), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, rows: tuple[int, ...], team: Team) -> Tensor:
        ctx.rows, ctx.team = rows, team
        x = x.contiguous()
        longest = x.new_zeros(max(rows), *x.shape[1:])
        longest[: len(x)] = x
        parts = [torch.empty_like(longest) for _ in rows]
        dist.all_gather(parts, longest, group=team.group)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = gradients[0].split(ctx.rows)[ctx.team.rank]
        return own * len(ctx.rows), None, None


def _all_to_all(x: Tensor, sent: tuple[int, ...], received: tuple[int, ...], team: Team) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), list(received), list(sent), group=team.group)
    return out
