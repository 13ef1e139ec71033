"""Distributions of the training noise level."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from typing_extensions import override

from vidlab.errors import UserError


@runtime_checkable
class TimeSampler(Protocol):
    """Maps uniform numbers to noise levels, so that the draw stays keyed by clip."""

    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Inverse cumulative distribution: u uniform in [0, 1) gives t in [0, 1]."""
        ...


@dataclass(frozen=True)
class Uniform(TimeSampler):
    """t uniform in [0, 1)."""

    @override
    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        return u


@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """logit(t) ~ N(mean, std^2): more training in the middle (Esser et al. 2024, eq. 19).

    ``mean > 0`` moves weight towards noise.
    """

    mean: float = 0.0
    std: float = 1.0

    @override
    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """t = sigmoid(mean + std * Phi^-1(u)), with u kept off the open ends."""
        eps = torch.finfo(u.dtype).eps
        # Esser et al. 2024, eq. 19
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(eps, 1 - eps)))


@dataclass(frozen=True)
class DiscreteUniform(TimeSampler):
    """One of ``steps`` equally likely levels 1/steps, 2/steps, ..., 1: the steps of DDPM (Ho et al. 2020, algorithm 1).

    Args:
        steps: number of levels; that of the schedule's betas.

    Raises:
        UserError: fewer than one step.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"objective.time_sampler: steps={self.steps} must be at least 1; 1000 is usual.")

    @override
    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """t = (floor(u steps) + 1) / steps."""
        return ((u * self.steps).floor() + 1).clamp(max=self.steps) / self.steps


@dataclass(frozen=True)
class RankStratified(TimeSampler):
    """Every process draws from its own equal share of the noise levels (Open-Sora Plan v1.3).

    A global batch then covers all levels evenly, which steadies the loss. The level of a clip depends on its rank: a
    run resumed on another number of processes draws others. Outside distributed training this is ``base``.

    Args:
        base: the distribution to divide.
        share: neighboring processes that have the same clip, and so the same level.
    """

    base: TimeSampler
    share: int = 1

    @override
    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """``base`` at (rank + u) / world size."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.base.from_uniform(u)
        below_one = 1 - torch.finfo(u.dtype).eps / 2
        rank, ranks = dist.get_rank() // self.share, dist.get_world_size() // self.share
        return self.base.from_uniform(((rank + u) / ranks).clamp(max=below_one))
