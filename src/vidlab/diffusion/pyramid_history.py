"""The history of pyramid flow: earlier frames at falling resolution, and the noise that training adds to them."""

from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import History
from vidlab.diffusion.pyramid_resolutions import Pyramid
from vidlab.errors import UserError
from vidlab.randomness import KeyedRNG


def frame_levels(frames: int, stage: int) -> tuple[int, ...]:
    """The level of each of ``frames`` earlier frames, oldest first, for a frame at ``stage``.

    The newest is as fine as the current frame, the one before one level coarser, and so on; all older ones are at
    level 0, the coarsest (M4V, eq. 7).
    """
    return tuple(max(0, stage - age) for age in reversed(range(frames)))  # M4V, eq. 7


def history_of(pyramid: Pyramid, frames: int, stage: int) -> tuple[History, ...]:
    """The first ``frames`` frames of a pyramid, oldest first, frames of one level together.

    Args:
        pyramid: clean latents, coarsest first.
        frames: how many frames are earlier than the current one.
        stage: of the current frame.
    """
    levels = frame_levels(frames, stage)
    found: list[History] = []
    first = 0
    for level, group in groupby(levels):
        stop = first + len(list(group))
        index = torch.arange(first, stop, device=pyramid[level].device)
        found.append(History(pyramid[level][:, :, first:stop], index))
        first = stop
    return tuple(found)


def token_total(frames: int, stage: int, finest: int, levels: int) -> int:
    """Tokens of ``frames`` earlier frames and of the current one at ``stage``.

    Args:
        frames: earlier ones.
        stage: from 0.
        finest: tokens of a frame at full resolution.
        levels: K.
    """
    return sum(finest // 4 ** (levels - 1 - level) for level in (*frame_levels(frames, stage), stage))


@runtime_checkable
class Corruption(Protocol):
    """How much noise training adds to each earlier frame, so that a video survives its own errors."""

    def levels(self, frames: int, draw: KeyedRNG) -> Float[Tensor, "B frames"]:
        """The share of noise of each earlier frame, oldest first."""
        ...


@dataclass(frozen=True)
class ConstantCorruption:
    """One share for all earlier frames of a clip, uniform between 0 and ``most`` (the authors' code of Pyramid Flow).

    Raises:
        UserError: ``most`` outside [0, 1].
    """

    most: float = 1 / 3

    def __post_init__(self) -> None:
        _check_most(self.most)

    def levels(self, frames: int, draw: KeyedRNG) -> Float[Tensor, "B frames"]:
        """(B, frames), equal along a row."""
        return self.most * draw.uniform("history_level", (1,)).expand(-1, frames)


@dataclass(frozen=True)
class LinearCorruption:
    """A share that grows from the oldest frame to the newest (M4V, appendix).

    The newest has eta_max, uniform in [0, most], the oldest eta_min, uniform in [0, eta_max]. The paper does not state
    ``most``; 1/3 is that of Pyramid Flow.

    Raises:
        UserError: ``most`` outside [0, 1].
    """

    most: float = 1 / 3

    def __post_init__(self) -> None:
        _check_most(self.most)

    def levels(self, frames: int, draw: KeyedRNG) -> Float[Tensor, "B frames"]:
        """(B, frames), evenly spaced between the two draws."""
        drawn = draw.uniform("history_level", (2,))  # (B, 2)
        newest = self.most * drawn[:, :1]  # (B, 1)
        return ramp(newest * drawn[:, 1:], newest, frames)


def ramp(first: Float[Tensor, "B 1"], last: Float[Tensor, "B 1"], count: int) -> Float[Tensor, "B count"]:
    """``count`` evenly spaced numbers from ``first`` to ``last`` in every row."""
    return first + (last - first) * torch.linspace(0, 1, count, device=first.device, dtype=first.dtype)


def _check_most(most: float) -> None:
    if not 0 <= most <= 1:
        raise UserError(f"objective.corruption.most={most} must lie in [0, 1]; 0 leaves earlier frames clean.")


def corrupted(latents: Float[Tensor, "B C T H W"], noise: Tensor, share: Float[Tensor, "B T"]) -> Tensor:
    """share noise + (1 - share) latents, frame by frame."""
    wide = share[:, None, :, None, None]  # (B, 1, T, 1, 1)
    return wide * noise + (1 - wide) * latents
