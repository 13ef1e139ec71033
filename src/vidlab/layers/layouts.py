"""Token layouts: reversible partitions of the token sequence within which attention is computed.

Everything else in a transformer block is per token, so one block serves every layout, and switching the layout changes
no parameter. A layout takes per-head tokens ``(B, L, N, d)`` to ``(G, l, M, d)``: groups of ``l`` tokens, laid along
the batch axis (``G = B * groups``) or, where that needs no copy, along the head axis (``M = groups * N``). Attention
is independent along both.

``python -m vidlab.layers.layouts --shape 24 32 32`` prints what each layout costs and reaches.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from vidlab.errors import UserError

Tokens = Shaped[Tensor, "B L N d"]
Groups = Shaped[Tensor, "G l M d"]


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

    @property
    def places(self) -> int:
        """Tokens per frame."""
        return self.height * self.width


class TokenLayout(ABC):
    """A reversible partition of the sequence into groups of equal length, the last of them padded where needed.

    Attributes:
        sees_frame: whether each token attends to all tokens of its own frame.
        pads_at_end: whether padding tokens are the last of their groups.
    """

    sees_frame: ClassVar[bool] = False
    pads_at_end: ClassVar[bool] = False

    @abstractmethod
    def groups(self, grid: Grid) -> int:
        """How many groups one clip is cut into."""

    @abstractmethod
    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Tokens that attend to each other, together; padding tokens are zero."""

    @abstractmethod
    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """The inverse of ``partition``; padding is dropped."""

    def padded(self, grid: Grid) -> int:
        """L with padding."""
        return grid.tokens

    def sequence_length(self, grid: Grid) -> int:
        """Tokens per attention call, padding included."""
        return self.padded(grid) // self.groups(grid)

    def attention_flops(self, grid: Grid, width: int) -> int:
        """FLOPs of q k^T and of the product with v in one forward pass of one clip: 4 D l^2 per group."""
        return 4 * width * self.groups(grid) * self.sequence_length(grid) ** 2

    def key_mask(
        self, grid: Grid, batch: int, heads: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "G M 1 l"] | None:
        """True at keys that are real tokens; None where nothing is padded."""
        if self.padded(grid) == grid.tokens:
            return None
        real = torch.ones(batch, grid.tokens, heads, 1, dtype=torch.bool, device=device)
        return self.partition(real, grid).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Full3D(TokenLayout):
    """Every token attends to every token."""

    sees_frame: ClassVar[bool] = True

    @override
    def groups(self, grid: Grid) -> int:
        return 1

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """The sequence as it is."""
        return x

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """The sequence as it is."""
        return x


@dataclass(frozen=True)
class Spatial(TokenLayout):
    """Tokens of one frame attend to each other: the "2" of 2+1D."""

    sees_frame: ClassVar[bool] = True

    @override
    def groups(self, grid: Grid) -> int:
        return grid.frames

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Frames along the batch; a view."""
        return x.unflatten(1, (grid.frames, -1)).flatten(0, 1)  # (B T, H W, N, d)

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """Frames back into one sequence."""
        return x.unflatten(0, (-1, grid.frames)).flatten(1, 2)  # (B, L, N, d)


@dataclass(frozen=True)
class Temporal(TokenLayout):
    """Tokens at one place attend to each other over time: the "1" of 2+1D."""

    @override
    def groups(self, grid: Grid) -> int:
        return grid.places

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Places along the heads; a view."""
        return x.unflatten(1, (grid.frames, -1)).flatten(2, 3)  # (B, T, H W N, d)

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """Places back into one sequence."""
        return x.unflatten(2, (grid.places, -1)).flatten(1, 2)  # (B, L, N, d)


@dataclass(frozen=True)
class SingleSkip(TokenLayout):
    """Every k-th token attends to each other, for each of the k offsets.

    Open-Sora Plan v1.3, "single skip": (l k) -> k groups of l. The sequence is padded to a multiple of k.

    Raises:
        UserError: k below 1.
    """

    pads_at_end: ClassVar[bool] = True

    k: int

    def __post_init__(self) -> None:
        _check_k(self.k)

    @override
    def groups(self, grid: Grid) -> int:
        return self.k

    def padded(self, grid: Grid) -> int:
        """L rounded up to a multiple of k."""
        return _round_up(grid.tokens, self.k)

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Offsets along the heads; a view where nothing is padded."""
        return _pad(x, self.padded(grid)).unflatten(1, (-1, self.k)).flatten(2, 3)  # (B, P / k, k N, d)

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """Offsets back into one sequence."""
        return x.unflatten(2, (self.k, -1)).flatten(1, 2)[:, : grid.tokens]  # (B, L, N, d)


@dataclass(frozen=True)
class GroupSkip(TokenLayout):
    """Runs of k neighbors, every k-th run, attend to each other.

    Open-Sora Plan v1.3, "group skip": (n m k) -> m groups of (n k) with m = k. The sequence is padded to a multiple of
    k^2. Alternated with ``SingleSkip`` any two tokens are at most two attentions apart.

    Raises:
        UserError: k below 1.
    """

    pads_at_end: ClassVar[bool] = True

    k: int

    def __post_init__(self) -> None:
        _check_k(self.k)

    @override
    def groups(self, grid: Grid) -> int:
        return self.k

    def padded(self, grid: Grid) -> int:
        """L rounded up to a multiple of k^2."""
        return _round_up(grid.tokens, self.k**2)

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Groups along the batch; one copy."""
        runs = _pad(x, self.padded(grid)).unflatten(1, (-1, self.k, self.k))  # (B, n, m, k, N, d), m = k
        return runs.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (B m, n k, N, d)

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """Runs back in order; one copy."""
        runs = x.unflatten(1, (-1, self.k)).unflatten(0, (-1, self.k))  # (B, m, n, k, N, d)
        return runs.transpose(1, 2).flatten(1, 3)[:, : grid.tokens]  # (B, L, N, d)


@dataclass(frozen=True)
class Window(TokenLayout):
    """Runs of ``size`` neighbors of the sequence attend to each other: the window of "skip + window".

    Raises:
        UserError: size below 1.
    """

    pads_at_end: ClassVar[bool] = True

    size: int

    def __post_init__(self) -> None:
        _check_k(self.size, "size")

    def groups(self, grid: Grid) -> int:
        """L / size, rounded up."""
        return self.padded(grid) // self.size

    def padded(self, grid: Grid) -> int:
        """L rounded up to a multiple of the size."""
        return _round_up(grid.tokens, self.size)

    def partition(self, x: Tokens, grid: Grid) -> Groups:
        """Windows along the batch; a view where nothing is padded."""
        return _pad(x, self.padded(grid)).unflatten(1, (-1, self.size)).flatten(0, 1)  # (B P / size, size, N, d)

    def restore(self, x: Groups, grid: Grid) -> Tokens:
        """Windows back into one sequence."""
        return x.unflatten(0, (-1, self.groups(grid))).flatten(1, 2)[:, : grid.tokens]  # (B, L, N, d)


@dataclass(frozen=True)
class LayerPlan:
    """The layout of every layer: a cycle, counted from layer 0, with full attention in the first and last layers.

    Args:
        cycle: layouts taken in turn; layer i has ``cycle[i % len(cycle)]``.
        full_first: how many layers at the start are full 3D instead.
        full_last: how many at the end.

    Raises:
        UserError: an empty cycle or a negative number.
    """

    cycle: Sequence[TokenLayout]
    full_first: int = 0
    full_last: int = 0

    def __post_init__(self) -> None:
        if not self.cycle:
            raise UserError("model.backbone.layouts.cycle is empty: name at least one token layout.")
        if min(self.full_first, self.full_last) < 0:
            raise UserError(
                f"model.backbone.layouts: full_first={self.full_first}, full_last={self.full_last}: 0 or more."
            )

    def layers(self, depth: int) -> tuple[TokenLayout, ...]:
        """One layout per layer."""
        return tuple(
            Full3D() if i < self.full_first or i >= depth - self.full_last else self.cycle[i % len(self.cycle)]
            for i in range(depth)
        )


def _check_k(k: int, name: str = "k") -> None:
    if k < 1:
        raise UserError(f"token layout: {name}={k} must be at least 1.")


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _pad(x: Tokens, length: int) -> Shaped[Tensor, "B P N d"]:
    missing = length - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


if __name__ == "__main__":
    raise SystemExit("This report is now: python -m vidlab layouts [--shape T H W]")
