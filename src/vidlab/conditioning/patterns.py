"""Frame patterns: which latent frames of a training clip are given to the model."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from vidlab.errors import UserError


@runtime_checkable
class FramePattern(Protocol):
    """Names the known frames among ``count``."""

    def frames(self, count: int) -> Bool[Tensor, "count"]:
        """True at known frames."""
        ...


@dataclass(frozen=True)
class First(FramePattern):
    """The first ``count`` frames: an image for 1, a video to continue for more.

    Raises:
        UserError: fewer than one.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"conditioning.pattern.count={self.count} must be at least 1.")

    @override
    def frames(self, count: int) -> Bool[Tensor, "count"]:
        return torch.arange(count) < self.count


@dataclass(frozen=True)
class Ends(FramePattern):
    """The first and the last frame: interpolation."""

    @override
    def frames(self, count: int) -> Bool[Tensor, "count"]:
        place = torch.arange(count)
        return (place == 0) | (place == count - 1)


@dataclass(frozen=True)
class EveryNth(FramePattern):
    """Frames 0, n, 2n, ...: temporal upsampling (STIV, section on applications).

    Raises:
        UserError: n below 2.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UserError(f"conditioning.pattern.n={self.n} must be at least 2.")

    @override
    def frames(self, count: int) -> Bool[Tensor, "count"]:
        return torch.arange(count) % self.n == 0
