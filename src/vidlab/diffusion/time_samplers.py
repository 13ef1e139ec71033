"""Distributions of the training noise level."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class TimeSampler(Protocol):
    """Maps uniform numbers to noise levels, so that the draw stays keyed by clip."""

    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """Inverse cumulative distribution: u uniform in [0, 1) gives t in [0, 1]."""
        ...


@dataclass(frozen=True)
class Uniform:
    """t uniform in [0, 1)."""

    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The identity."""
        return u


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2): more training in the middle (Esser et al. 2024, eq. 19).

    ``mean > 0`` moves weight towards noise.
    """

    mean: float = 0.0
    std: float = 1.0

    def from_uniform(self, u: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """t = sigmoid(mean + std * Phi^-1(u)), with u kept off the open ends."""
        eps = torch.finfo(u.dtype).eps
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(eps, 1 - eps)))
