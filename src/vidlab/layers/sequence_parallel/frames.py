"""A clip's frames on several processes: all but attention over time is at home in a frame."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vidlab.clip import Controls, DenoiserInput
from vidlab.errors import UserError
from vidlab.layers.attention import SelfAttention
from vidlab.layers.layouts import Grid, Spatial, TokenLayout
from vidlab.layers.rope import Rotation
from vidlab.layers.sequence_parallel.dealing import deal
from vidlab.layers.sequence_parallel.layouts import OwnGroups
from vidlab.layers.sequence_parallel.shares import Move, move, own_groups, own_rotation
from vidlab.parallel.exchange import Team, gathered


@dataclass(frozen=True, eq=False)
class OverTime:
    """Attention over time of tokens whose frames are on different processes: two exchanges, there and back.

    Args:
        there, back: from whole frames to whole places, and from these to frames.
        tokens: those whose places are here, by their number in the whole grid.
        layout: of these tokens.
    """

    there: Move
    back: Move
    tokens: Int[Tensor, "held"]
    layout: OwnGroups

    def __call__(
        self, attention: SelfAttention, x: Float[Tensor, "B held D"], grid: Grid, rotation: Rotation
    ) -> Float[Tensor, "B held D"]:
        """What attention gives the tokens of this process.

        Args:
            attention: over time.
            x: tokens of this process's frames.
            grid: any; groups are known.
            rotation: of the whole grid.
        """
        return self.back(attention(self.there(x), self.layout, grid, own_rotation(rotation, self.tokens)))


class FrameSharing:
    """Frames of a network dealt to a team; what depends on the grid alone is remembered.

    Args:
        team: the processes.
        over_time: the layout of attention over time.
    """

    def __init__(self, team: Team, over_time: TokenLayout) -> None:
        self.team, self.layout = team, over_time
        self._known: dict[tuple[Grid, torch.device], OverTime] = {}

    def shares(self, frames: int) -> bool:
        """Whether every process gets a frame; a shorter clip, such as an image, is computed whole by each of them."""
        return frames >= self.team.size

    def own(self, x: Shaped[Tensor, "*any"], dim: int, frames: int) -> Shaped[Tensor, "*any"]:
        """The part of this process along a dimension of so many frames, or of a multiple of them."""
        sizes = [size * (x.shape[dim] // frames) for size in frame_shares(frames, self.team.size)]
        return x.split(sizes, dim)[self.team.rank]

    def own_input(self, input: DenoiserInput, frames: int) -> DenoiserInput:
        """What a denoiser reads of this process's frames: latents, controls, noise levels where frames have them."""
        controls = input.controls and Controls(
            self.own(input.controls.channels, 2, frames), self.own(input.controls.mask, 2, frames)
        )
        t, embedded = (x if x.ndim == 1 else self.own(x, 1, frames) for x in (input.t, input.embedded_t))
        latents = self.own(input.latents, 2, frames)
        return replace(input, latents=latents, t=t, embedded_t=embedded, controls=controls)

    def whole(self, x: Float[Tensor, "*any"], dim: int, frames: int, per_frame: int = 1) -> Float[Tensor, "*any"]:
        """The parts of all processes along a dimension on each of them; see ``gathered`` for the gradient."""
        sizes = [size * per_frame for size in frame_shares(frames, self.team.size)]
        return gathered(x.transpose(0, dim), sizes, self.team).transpose(0, dim)

    def over_time(self, grid: Grid, device: torch.device) -> OverTime:
        """Attention over time in a whole grid.

        Raises:
            UserError: a frame has fewer tokens than there are processes.
        """
        key = (grid, device)
        if grid.places < self.team.size:
            raise UserError(
                f"trainer.sequence_parallel={self.team.size}: a frame has {grid.places} tokens, and each process needs "
                "one. Use fewer processes, or larger clips."
            )
        if key not in self._known:
            self._known[key] = self._dealt(grid, device)
        return self._known[key]

    def _dealt(self, grid: Grid, device: torch.device) -> OverTime:
        spatial, temporal = deal(Spatial(), grid, self.team.size), deal(self.layout, grid, self.team.size)
        there = move(spatial.dealing, temporal.dealing, self.team, device)
        back = move(temporal.dealing, spatial.dealing, self.team, device)
        return OverTime(
            there, back, temporal.dealing.tokens[self.team.rank].to(device),
            own_groups(temporal, self.team.rank, device),
        )  # fmt: skip


def frame_shares(frames: int, ranks: int) -> tuple[int, ...]:
    """Frames of each process: neighbors, as equal as can be."""
    return tuple((number + 1) * frames // ranks - number * frames // ranks for number in range(ranks))
