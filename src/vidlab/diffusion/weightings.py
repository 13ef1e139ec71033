"""Loss weights by noise level."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.diffusion.schedules import PathCoefficients


@runtime_checkable
class Weighting(Protocol):
    """A factor on the squared error of the network's own target."""

    def weight(self, path: PathCoefficients) -> Float[Tensor, "*t"]:
        """One factor per noise level, in the shape of t."""
        ...


@dataclass(frozen=True)
class Constant:
    """Weight 1: the plain mean squared error of the target."""

    def weight(self, path: PathCoefficients) -> Float[Tensor, "*t"]:
        """Ones."""
        return torch.ones_like(path.alpha)
