"""Rotary position embedding over a (frames, height, width) grid of tokens (Su et al. 2021, section 3.2.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import UserError
from vidlab.layers.compilation.fused import fused
from vidlab.layers.layouts import Grid

# Cosine and sine of the angle of each plane. Planes are adjacent: (x_0, x_1), (x_2, x_3), ... The half-split convention
# is the same map up to a permutation of the rows of the query and key projections.
# One for all clips, or one for each where clips keep different tokens.
Rotation = Float[Tensor, "*clips L 1 half 2"]


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


def rope_scales(scale: Sequence[float]) -> tuple[float, float, float]:
    """(t, y, x) divisors of positions.

    Raises:
        UserError: not three positive numbers.
    """
    if len(scale) != 3 or min(scale) <= 0:
        raise UserError(
            f"model.backbone.rope_scale={list(scale)}: give three positive numbers (frames, rows, columns)."
        )
    frames, rows, columns = (float(value) for value in scale)
    return frames, rows, columns


def rotation(
    grid: Grid,
    head_dim: int,
    base: float = 10000.0,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | str | None = None,
) -> Rotation:
    """3-D rotary positions: ``rotation_along`` with the planes of a head shared by the three axes.

    Each axis turns a part of its own of every head (Open-Sora Plan, arXiv 2412.00131, eq. 6 and 7).

    Args:
        grid: token grid.
        head_dim: d.
        base: the slowest wavelength is about 2 pi base.
        scale: position interpolation per axis (t, y, x): positions are divided by it.
        device: where to compute.
    """
    return rotation_along(grid, axis_split(head_dim), base, scale, device)


def rotation_along(
    grid: Grid,
    planes: tuple[int, int, int],
    base: float = 10000.0,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: torch.device | str | None = None,
) -> Rotation:
    """(cos, sin) per token and plane; the angle is position / scale * base^(-i / planes) for plane i of an axis.

    Args:
        grid: token grid.
        planes: rotation planes of each axis (t, y, x); an axis with none leaves no trace.
        base: as in ``rotation``.
        scale: as in ``rotation``.
        device: where to compute.
    """
    sizes = (grid.frames, grid.height, grid.width)
    angles = []
    for axis, (size, count, divisor) in enumerate(zip(sizes, planes, scale, strict=True)):
        if not count:
            continue
        frequency = base ** (-torch.arange(count, device=device, dtype=torch.float32) / count)  # (planes,)
        position = torch.arange(size, device=device, dtype=torch.float32) / divisor  # (size,)
        view = [1, 1, 1, count]
        view[axis] = size
        angles.append((position[:, None] * frequency).view(view).expand(*sizes, count))  # (T, H, W, planes)
    flat = torch.cat(angles, dim=-1).reshape(grid.tokens, 1, sum(planes))  # (L, 1, d / 2)
    return cos_sin(flat)


def rotation_at(
    places: Float[Tensor, "L 3"],
    planes: tuple[int, int, int],
    base: float = 10000.0,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Rotation:
    """``rotation_along`` for tokens at any places (t, y, x), such as those of ``token_places``."""
    angles = []
    for position, count, divisor in zip(places.unbind(-1), planes, scale, strict=True):
        frequency = base ** (-torch.arange(count, device=places.device, dtype=torch.float32) / max(count, 1))
        angles.append((position / divisor)[:, None] * frequency)  # (L, planes of the axis)
    flat = torch.cat(angles, dim=-1)[:, None]  # (L, 1, half)
    return cos_sin(flat)


def cos_sin(angles: Float[Tensor, "*L 1 half"]) -> Rotation:
    """The rotation by these angles."""
    return torch.view_as_real(torch.polar(torch.ones_like(angles), angles))  # (*L, 1, half, 2)


def rotate(x: Float[Tensor, "B L N d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """Rotate the plane (x_2i, x_2i+1) of each head by the token's angle i; computed and returned in float32.

    In bfloat16 a cosine near one would be off by up to 1 in 512. Inside one kernel float32 costs no memory traffic.
    """
    planes = x.float().unflatten(-1, (-1, 2))  # (B, L, N, d / 2, 2)
    if x.is_cpu and not torch.compiler.is_compiling():  # there one complex product is fastest
        return torch.view_as_real(torch.view_as_complex(planes) * torch.view_as_complex(by)).flatten(-2)
    return _turn(planes, by[..., :1], by[..., 1:], axis=-1).flatten(-2)  # (B, L, N, d)


def _turn(planes: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
    """(a, b) along an axis to (a cos - b sin, b cos + a sin), without joining two results, which would be a copy."""
    sign = torch.arange(-1, 2, 2, device=planes.device).view([2] + [1] * (-1 - axis))
    return planes * cos + planes.flip(axis) * (sin * sign)


@fused
def turned(x: Float[Tensor, "B L N d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """``rotate``, returned in the dtype of x."""
    return rotate(x, by).to(x.dtype)


@fused
def turned_halves(x: Float[Tensor, "B L N d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """``rotate_halves``, returned in the dtype of x."""
    return rotate_halves(x, by).to(x.dtype)


def rotate_halves(x: Float[Tensor, "B L N d"], by: Rotation) -> Float[Tensor, "B L N d"]:
    """The same rotation for heads whose planes pair the halves of each axis' third: (x_i, x_{i + d/6}) within d/3.

    That is the order of Open-Sora Plan v1.3's weights. Computed and returned in float32.

    Raises:
        ValueError: the head is not six equal parts.
    """
    if x.shape[-1] % 6:
        raise ValueError(f"head_dim={x.shape[-1]} is not a multiple of 6: two halves on each of three axes")
    planes = x.float().unflatten(-1, (3, 2, -1))  # (B, L, N, 3, 2, d / 6)
    cos, sin = (part.unflatten(-1, (3, -1)) for part in by.unbind(-1))  # (*clips, L, 1, 3, d / 6) each
    if not x.is_cpu or torch.compiler.is_compiling():
        return _turn(planes, cos.unsqueeze(-2), sin.unsqueeze(-2), axis=-2).flatten(-3)
    real, imaginary = planes.unbind(-2)  # (B, L, N, 3, d / 6) each
    turned = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return torch.stack(turned, dim=-2).flatten(-3)  # (B, L, N, d)
