"""Where tokens stand in time and space, for frames of several resolutions in one sequence."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.layers.layouts import Grid


def resampled(size: int, onto: int, device: torch.device | str | None = None) -> Float[Tensor, "size"]:
    """Places 0, 1, ..., ``onto`` - 1 read off at ``size`` evenly spaced points: 8 at 4 are 0.5, 2.5, 4.5, 6.5.

    That is linear interpolation whose pixels have an extent (``align_corners=False``): tokens of a coarser grid stand
    in the middle of what they cover (Pyramid Flow's code).
    """
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (onto / size) - 0.5


def token_places(grid: Grid, frames: Int[Tensor, "T"], within: Grid) -> Float[Tensor, "L 3"]:
    """(t, y, x) of every token of some frames, in units of the tokens of another grid.

    Args:
        grid: theirs.
        frames: the number of each frame, which is its t.
        within: the grid whose tokens are one apart: that of the frame being predicted.
    """
    rows = resampled(grid.height, within.height, frames.device)
    columns = resampled(grid.width, within.width, frames.device)
    return torch.stack(torch.meshgrid(frames.float(), rows, columns, indexing="ij"), dim=-1).flatten(0, 2)


def frame_causal(times: Float[Tensor, "L"] | Int[Tensor, "L"]) -> Bool[Tensor, "L L"]:
    """True where the frame of a token (row) is not before that of another (column), which it then sees."""
    return times[:, None] >= times[None, :]


def next_frames(earlier: Sequence[Int[Tensor, "_"]], count: int) -> Int[Tensor, "count"]:
    """The numbers of ``count`` frames that follow on the last of all earlier ones."""
    last = torch.cat(list(earlier)).max()
    return last + 1 + torch.arange(count, device=last.device)
