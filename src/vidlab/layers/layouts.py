"""Token layouts: reversible partitions of the token sequence within which attention is computed.

A layout turns ``(B, L, ...)`` into ``(B * groups, L / groups, ...)`` and back. Everything else in a transformer block
is per token, so one block serves every layout, and switching the layout changes no parameter.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The token grid: frames, rows and columns, flattened in that order to L = frames * height * width."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """L."""
        return self.frames * self.height * self.width


@runtime_checkable
class TokenLayout(Protocol):
    """A reversible partition of the sequence."""

    def partition(self, x: Float[Tensor, "B L *d"], grid: Grid) -> Float[Tensor, "G l *d"]:
        """Group tokens that attend to each other; groups go to the batch axis."""
        ...

    def restore(self, x: Float[Tensor, "G l *d"], grid: Grid) -> Float[Tensor, "B L *d"]:
        """The inverse of ``partition``."""
        ...


@dataclass(frozen=True)
class Full3D:
    """Every token attends to every token."""

    def partition(self, x: Float[Tensor, "B L *d"], grid: Grid) -> Float[Tensor, "G l *d"]:
        """The sequence as it is."""
        return x

    def restore(self, x: Float[Tensor, "G l *d"], grid: Grid) -> Float[Tensor, "B L *d"]:
        """The sequence as it is."""
        return x


@dataclass(frozen=True)
class Spatial:
    """Tokens of one frame attend to each other: the "2" of 2+1D."""

    def partition(self, x: Float[Tensor, "B L *d"], grid: Grid) -> Float[Tensor, "G l *d"]:
        """One group per frame."""
        return rearrange(x, "b (t s) ... -> (b t) s ...", t=grid.frames)

    def restore(self, x: Float[Tensor, "G l *d"], grid: Grid) -> Float[Tensor, "B L *d"]:
        """Frames back into one sequence."""
        return rearrange(x, "(b t) s ... -> b (t s) ...", t=grid.frames)


@dataclass(frozen=True)
class Temporal:
    """Tokens at one place attend to each other over time: the "1" of 2+1D."""

    def partition(self, x: Float[Tensor, "B L *d"], grid: Grid) -> Float[Tensor, "G l *d"]:
        """One group per place."""
        return rearrange(x, "b (t s) ... -> (b s) t ...", t=grid.frames)

    def restore(self, x: Float[Tensor, "G l *d"], grid: Grid) -> Float[Tensor, "B L *d"]:
        """Places back into one sequence."""
        return rearrange(x, "(b s) t ... -> b (t s) ...", s=grid.height * grid.width)
