"""Rotary position embedding over a (frames, height, width) grid of tokens (Su et al. 2021, section 3.2.2)."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from vidlab.layers.layouts import Grid

# Adjacent planes (x_0, x_1), (x_2, x_3), ... are complex numbers in memory: one complex product rotates a head. The
# half-split convention is the same map up to a permutation of the rows of the query and key projections.
Rotation = Complex[Tensor, "L 1 half"]


def axis_split(head_dim: int) -> tuple[int, int, int]:
    """Split the d / 2 rotation planes of a head over (t, y, x), as evenly as can be with y and x alike.

    Raises:
        ValueError: the head has an odd dimension or fewer than three planes.
    """
    planes = head_dim // 2
    if head_dim % 2 or planes < 3:
        raise ValueError(f"head_dim={head_dim}: 3-D rotary positions need an even head_dim of at least 6")
    space = round(planes / 3)
    return planes - 2 * space, space, space


def rotation(
    grid: Grid,
    head_dim: int,
    base: float = 10000.0,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | str | None = None,
) -> Rotation:
    """exp(i angle) per token and plane; the angle is position / scale * base^(-i / planes) for plane i of an axis.

    Args:
        grid: token grid.
        head_dim: d.
        base: the slowest wavelength is about 2 pi base.
        scale: position interpolation per axis (t, y, x): positions are divided by it.
        device: where to compute.
    """
    sizes = (grid.frames, grid.height, grid.width)
    shape = (*sizes, -1)
    angles = []
    for axis, (size, planes, stretch) in enumerate(zip(sizes, axis_split(head_dim), scale, strict=True)):
        frequency = base ** (-torch.arange(planes, device=device, dtype=torch.float32) / planes)
        position = torch.arange(size, device=device, dtype=torch.float32) / stretch
        angle = position[:, None] * frequency
        view = [1, 1, 1, planes]
        view[axis] = size
        angles.append(angle.view(view).expand(*shape[:3], planes))
    flat = torch.cat(angles, dim=-1).reshape(grid.tokens, 1, head_dim // 2)
    return torch.polar(torch.ones_like(flat), flat)


def rotate(x: Float[Tensor, "B L N d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """Rotate the plane (x_2i, x_2i+1) of each head by the token's angle i; computed and returned in float32."""
    planes = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(planes * by).flatten(-2)
