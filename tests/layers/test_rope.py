import cmath
import math

import pytest
import torch

from vidlab.layers.layouts import Grid
from vidlab.layers.rope import (
    axis_split,
    cos_sin,
    rotate,
    rotate_halves,
    rotation,
    rotation_along,
    turned,
    turned_halves,
)


def token(grid: Grid, t: int, y: int, x: int) -> int:
    return (t * grid.height + y) * grid.width + x


@pytest.mark.parametrize(
    ("head_dim", "split"),
    # thirds where planes divide; otherwise y and x alike, and t takes what is left
    [(6, (1, 1, 1)), (8, (2, 1, 1)), (10, (1, 2, 2)), (64, (10, 11, 11)), (96, (16, 16, 16)), (128, (22, 21, 21))],
)
def test_the_planes_of_a_head_are_shared_by_the_axes(head_dim, split):
    assert axis_split(head_dim) == split
    assert 2 * sum(split) == head_dim


@pytest.mark.parametrize("head_dim", range(6, 130, 2))
def test_every_axis_has_planes_and_none_much_more(head_dim):
    split = axis_split(head_dim)
    assert min(split) >= 1 and max(split) - min(split) <= 1 and split[1] == split[2]


@pytest.mark.parametrize("head_dim", [2, 4, 7, 65])
def test_heads_too_small_or_odd(head_dim):
    with pytest.raises(ValueError, match=f"head_dim={head_dim}"):
        axis_split(head_dim)


def test_angles_by_hand():
    # head_dim 12: two planes per axis with frequencies base^0 = 1 and base^(-1/2) = 1/10
    grid = Grid(3, 4, 5)
    by = rotation(grid, 12, base=100.0)
    assert by.shape == (60, 1, 6, 2)
    by = torch.view_as_complex(by)
    expected = [2 * 1, 2 / 10, 3 * 1, 3 / 10, 4 * 1, 4 / 10]  # t = 2, y = 3, x = 4
    unit = [cmath.exp(1j * angle) for angle in expected]
    torch.testing.assert_close(by[token(grid, 2, 3, 4), 0], torch.tensor(unit, dtype=torch.complex64))
    torch.testing.assert_close(by[0, 0], torch.ones(6, dtype=torch.complex64))


def test_position_interpolation_divides_positions():
    grid = Grid(4, 4, 4)
    stretched = torch.view_as_complex(rotation(grid, 12, scale=(2.0, 1.0, 4.0))[token(grid, 2, 3, 2), 0])
    fractional = [cmath.exp(1j * p * f) for p in (1.0, 3.0, 0.5) for f in (1.0, 0.01)]
    torch.testing.assert_close(stretched, torch.tensor(fractional, dtype=torch.complex64))


def test_a_plane_is_turned_by_its_angle():
    x = torch.tensor([1.0, 0.0, 0.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 6)
    angles = torch.tensor([torch.pi / 2, torch.pi, 0.0]).view(1, 1, 3)
    turned = rotate(x, cos_sin(angles))
    expected = torch.tensor([0.0, 1.0, 0.0, -2.0, 3.0, 4.0]).view(1, 1, 1, 6)
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


def test_rotations_keep_lengths_and_return_float32():
    grid = Grid(2, 3, 4)
    x = torch.randn(2, grid.tokens, 3, 16)
    turned = rotate(x, rotation(grid, 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), rotation(grid, 16)).dtype == torch.float32


def test_real_arithmetic_of_a_compiled_graph_is_the_complex_product(monkeypatch):
    by, x = rotation(Grid(2, 3, 4), 16), torch.randn(2, 24, 3, 16)
    complex_product = rotate(x, by)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, by), complex_product)


@pytest.mark.parametrize("function", [turned, turned_halves])
def test_what_is_turned_keeps_its_dtype_and_is_rounded_once(function):
    by, x = rotation(Grid(2, 3, 4), 12), torch.randn(2, 24, 3, 12).bfloat16()
    exact = rotate(x, by) if function is turned else rotate_halves(x, by)
    assert torch.equal(function(x, by), exact.bfloat16())


def test_scores_depend_on_the_offset_along_each_axis_alone():
    grid = Grid(4, 5, 6)
    q, k = torch.randn(2, 1, 1, 1, 24)
    by = rotation(grid, 24, base=100.0)
    every = (1, grid.tokens, 1, 24)
    scores = (rotate(q.expand(every), by)[0, :, 0] @ rotate(k.expand(every), by)[0, :, 0].T).double()
    for offset in ((1, 0, 0), (0, 2, 0), (0, 0, 3), (1, -2, 2), (-1, 1, -3)):
        values = [
            scores[token(grid, t, y, x), token(grid, t + offset[0], y + offset[1], x + offset[2])]
            for t in range(4) for y in range(5) for x in range(6)
            if 0 <= t + offset[0] < 4 and 0 <= y + offset[1] < 5 and 0 <= x + offset[2] < 6
        ]  # fmt: skip
        assert len(values) > 10 and max(values) - min(values) < 2e-5
    # and it does depend on each of them
    here = [scores[0, token(grid, *offset)] for offset in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert min(abs(a - b) for i, a in enumerate(here) for b in here[:i]) > 1e-3


def test_planes_may_belong_to_some_axes_only():
    grid = Grid(3, 2, 4)
    splits = ((0, 2, 2), (4, 0, 0))
    space, time = (torch.view_as_complex(rotation_along(grid, split, base=100.0)) for split in splits)
    unit = [cmath.exp(1j * angle) for angle in (1 * 1, 1 / 10, 3 * 1, 3 / 10)]  # y = 1, x = 3
    torch.testing.assert_close(space[token(grid, 2, 1, 3), 0], torch.tensor(unit, dtype=torch.complex64))
    unit = [cmath.exp(1j * 2 * 100 ** (-i / 4)) for i in range(4)]  # t = 2
    torch.testing.assert_close(time[token(grid, 2, 1, 3), 0], torch.tensor(unit, dtype=torch.complex64))
    torch.testing.assert_close(rotation(grid, 12), rotation_along(grid, (2, 2, 2)), rtol=0, atol=0)


def test_halves_of_each_third_are_turned_by_hand():
    # head_dim 6: thirds of two numbers; t = 1, y = 2, x = 3 turn (1, 0), (0, 1) and (1, 1) by 1, 2 and 3 radians
    grid = Grid(2, 3, 4)
    place = token(grid, 1, 2, 3)
    x = torch.zeros(1, grid.tokens, 1, 6)
    x[0, place, 0] = torch.tensor([1.0, 0, 0, 1, 1, 1])
    cos, sin = [math.cos(a) for a in (1, 2, 3)], [math.sin(a) for a in (1, 2, 3)]
    expected = [cos[0], sin[0], -sin[1], cos[1], cos[2] - sin[2], sin[2] + cos[2]]
    assert rotate_halves(x, rotation(grid, 6))[0, place, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_halves_are_pairs_a_third_apart_at_the_frequencies_of_their_axis():
    # head_dim 12: thirds of four numbers, (x_0, x_2) at frequency 1 and (x_1, x_3) at base^(-1/2)
    grid = Grid(1, 1, 3)
    x = torch.zeros(1, 3, 1, 12)
    x[0, 2, 0, 8:] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    turned = rotate_halves(x, rotation(grid, 12))[0, 2, 0].tolist()
    assert turned == pytest.approx([0] * 8 + [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)], abs=1e-6)


def test_halves_are_the_adjacent_planes_of_permuted_numbers():
    grid, x = Grid(2, 3, 2), torch.randn(2, 12, 2, 24)
    by = rotation(grid, 24)
    adjacent = x.unflatten(-1, (3, 2, 4)).transpose(-1, -2).flatten(-3)
    expected = rotate(adjacent, by).unflatten(-1, (3, 4, 2)).transpose(-1, -2).flatten(-3)
    torch.testing.assert_close(rotate_halves(x, by), expected)
    assert rotate_halves(x.bfloat16(), by).dtype == torch.float32


def test_halves_need_six_equal_parts():
    with pytest.raises(ValueError, match="head_dim=8 is not a multiple of 6"):
        rotate_halves(torch.zeros(1, 1, 1, 8), rotation(Grid(1, 1, 1), 8))


def test_every_clip_may_have_its_own_angles():
    x = torch.randn(2, 3, 1, 6)
    by = torch.stack([rotation(Grid(1, 1, 3), 6), rotation(Grid(3, 1, 1), 6)])
    for clip in range(2):
        assert torch.equal(rotate(x, by)[clip], rotate(x[clip : clip + 1], by[clip])[0])
