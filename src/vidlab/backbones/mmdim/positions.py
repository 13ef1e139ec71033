"""MM-DiM's positions and frame-causal mask, for frames that have token grids of different sizes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidlab.clip import DenoiserInput
from vidlab.layers.layouts import Grid
from vidlab.layers.mixers.recomposition import FrameGrids
from vidlab.layers.positions import fourier_at
from vidlab.layers.rope import Rotation, rotation_at
from vidlab.layers.token_places import token_places


def token_positions(
    frames: FrameGrids, times: Int[Tensor, "F"] | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "V 3"]:
    """(t, y, x) of each token, in rows and columns of the last frame's grid.

    Args:
        frames: the grids.
        times: of each frame; None counts them from 0.
        device: where to compute.
    """
    last, t = Grid(1, *frames.sizes[-1]), torch.arange(len(frames.sizes), device=device) if times is None else times
    pairs = zip(frames.sizes, t.split(1), strict=True)
    return torch.cat([token_places(Grid(1, *size), time, last) for size, time in pairs])  # (V, 3)


def frame_times(input: DenoiserInput, patch_frames: int) -> Int[Tensor, "F"] | None:
    """When each frame of tokens is: those of the history by their index, predicted ones right after; None without
    history, where frames count from 0."""
    if not input.history:
        return None
    device, count = input.latents.device, input.latents.shape[2]
    known = torch.cat([part.frame_index[::patch_frames] for part in input.history]).to(device)  # (history,)
    new = known[-1:] + patch_frames + torch.arange(0, count, patch_frames, device=device)
    return torch.cat([known, new]) // patch_frames  # (F,)


def rotation_of(
    frames: FrameGrids,
    planes: tuple[int, int, int],
    base: float,
    scale: tuple[float, float, float],
    device: torch.device | str | None = None,
    times: Int[Tensor, "F"] | None = None,
) -> Rotation:
    """Rotary angles of the frames' tokens."""
    return rotation_at(token_positions(frames, times, device), planes, base, scale)


def fourier_of(
    frames: FrameGrids,
    width: int,
    scale: tuple[float, float, float],
    device: torch.device | str | None = None,
    times: Int[Tensor, "F"] | None = None,
) -> Float[Tensor, "V D"]:
    """Fourier features of the frames' absolute positions."""
    return fourier_at(token_positions(frames, times, device), width, scale)


def frame_causal(
    number: Int[Tensor, "V"], text: Bool[Tensor, "B S"] | None, rows: slice = slice(None)
) -> Bool[Tensor, "#B 1 rows L"]:
    """True where a token of [text, frames] may look: at its own and at earlier frames.

    Text counts as time 0 like the first frame, so it sees itself and that frame, and all frames see the text; real
    tokens see no padding, and padding sees only padding (Pyramid Flow). No row is empty.

    Args:
        number: the frame of each token.
        text: which text slots are real; None without text.
        rows: of which tokens of [text, frames].
    """
    if text is None:
        return (number[rows, None] >= number)[None, None]
    time = torch.cat([number.new_zeros(text.shape[1]), number])  # (L,)
    real = torch.cat([text, text.new_ones(len(text), len(number))], dim=1)  # (B, L)
    return ((time[rows, None] >= time) & (real[:, rows, None] == real[:, None]))[:, None]
