"""Absolute positions of tokens in time and space as Fourier features, added to the tokens."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.layers.layouts import Grid

SLOWEST = 0.1  # radians per token: a wave of 63 tokens
# Powers of 1/g with g^4 = g + 1: multiples of them, modulo one, fill the cube evenly (Roberts 2018, the R_3 sequence).
_STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
_SIGNS = ((1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1))  # a wave and its reverse are one


def fourier_positions(
    grid: Grid,
    width: int,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | str | None = None,
) -> Float[Tensor, "L D"]:
    """cos and sin of w . (t, y, x) for D / 2 wave vectors w, in turn: Fourier features (Tancik et al. 2020, eq. 5).

    Each wave crosses all three axes, so that "at the left first, at the right later" is a direction of this space;
    cosines along one axis at a time (Vaswani et al. 2017) would have to be multiplied first, which took a small
    network five times as long to learn. Components of w are between 0.1 and pi radians per token, evenly spread in
    their logarithms, in all four pairs of opposite octants.

    Args:
        grid: token grid.
        width: D, even.
        scale: (t, y, x) by which positions are divided.
        device: where to compute.
    """
    axes = [
        torch.arange(size, device=device, dtype=torch.float32) / divisor
        for size, divisor in zip((grid.frames, grid.height, grid.width), scale, strict=True)
    ]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (T, H, W, 3) to (L, 3)
    return _waves(position, width)


def fourier_at(
    places: Float[Tensor, "L 3"], width: int, scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float[Tensor, "L D"]:
    """The same waves at any places (t, y, x), such as those of ``token_places``."""
    axes = [axis / divisor for axis, divisor in zip(places.unbind(-1), scale, strict=True)]
    return _waves(torch.stack(axes, dim=-1), width)


def _waves(position: Float[Tensor, "L 3"], width: int) -> Float[Tensor, "L D"]:
    angle = (position[:, None] * _wave_vectors(width // 2, position.device)).sum(-1)  # (L, D / 2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)  # (L, D), eq. 5


def _wave_vectors(count: int, device: torch.device | str | None) -> Float[Tensor, "W 3"]:
    number = torch.arange(count, device=device)
    spread = (0.5 + number[:, None] * torch.tensor(_STEPS, device=device, dtype=torch.float64)) % 1  # (W, 3)
    signs = torch.tensor(_SIGNS, device=device)[number % len(_SIGNS)]  # (W, 3)
    return (math.pi * (SLOWEST / math.pi) ** spread * signs).float()
