"""Overlapping tiles of frames: less memory for large pictures, at the price of another result.

A tile does not see what lies beyond its border, and attention within frames sees its own tile alone, so tiled and whole
processing differ. Chunks in time (``chunk``) do not have this price.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError


@dataclass(frozen=True)
class Tiling:
    """Square tiles.

    Args:
        size: rows and columns of a tile, in pixels, a multiple of 8.
        overlap: rows and columns shared by neighbors, in pixels, a multiple of 8 and at most half the size; there the
            result passes linearly from one to the other.

    Raises:
        UserError: sizes that do not fit.
    """

    size: int = 256
    overlap: int = 64

    def __post_init__(self) -> None:
        fits = self.size >= 8 and not self.size % 8 and not self.overlap % 8 and 0 <= 2 * self.overlap <= self.size
        if not fits:
            raise UserError(
                f"autoencoder.tiling: size={self.size} and overlap={self.overlap} must be multiples of 8, the overlap "
                "at most half the size."
            )

    def divided(self, stride: int) -> "LatentTiling":
        """The same tiles in latent positions."""
        return LatentTiling(self.size // stride, self.overlap // stride)


@dataclass(frozen=True)
class LatentTiling:
    """Tiles in latent positions."""

    size: int
    overlap: int


def tiled(
    process: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C T H W"],
    tiling: Tiling | LatentTiling,
    ratio: float,
) -> Float[Tensor, "B D t h w"]:
    """Process tile by tile and blend.

    Args:
        process: of one tile; its output has ``ratio`` times the rows and columns.
        x: the whole.
        tiling: in positions of ``x``.
        ratio: of output to input sides.
    """
    rows = _starts(x.shape[3], tiling)
    columns = _starts(x.shape[4], tiling)
    total: Tensor | None = None
    weight: Tensor | None = None
    for top in rows:
        for left in columns:
            tile = process(x[:, :, :, top : top + tiling.size, left : left + tiling.size])
            height, width = tile.shape[3:]
            if total is None or weight is None:
                total = tile.new_zeros(*tile.shape[:3], round(x.shape[3] * ratio), round(x.shape[4] * ratio))
                weight = total.new_zeros(total.shape[3:])
            across = round(tiling.overlap * ratio)
            share = _ramp(height, across).to(tile)[:, None] * _ramp(width, across).to(tile)
            place = (slice(round(top * ratio), round(top * ratio) + height),
                     slice(round(left * ratio), round(left * ratio) + width))  # fmt: skip
            total[(..., *place)] += tile * share
            weight[place] += share
    assert total is not None and weight is not None
    return total / weight


def _starts(size: int, tiling: Tiling | LatentTiling) -> list[int]:
    """Where tiles begin; the last ends with the picture, so all are of full size where the picture is."""
    step = tiling.size - tiling.overlap
    inner = range(0, max(size - tiling.size, 0), step)
    return [*inner, max(size - tiling.size, 0)]


def _ramp(size: int, overlap: int) -> Float[Tensor, "size"]:
    """Weights of a tile along one side: rising over the overlap, 1, falling; never 0."""
    place = torch.arange(1, size + 1, dtype=torch.float32)
    return (torch.minimum(place, place.flip(0)) / (overlap + 1)).clamp(max=1)
