"""Absolute positions as waves."""

import math

import torch

from vidlab.layers.layouts import Grid
from vidlab.layers.positions import fourier_positions

STEP = 1.2207440846057596**-1  # 1/g, g^4 = g + 1


def test_waves_by_hand():
    grid = Grid(2, 3, 4)
    found = fourier_positions(grid, 4, scale=(1.0, 2.0, 1.0))[(1 * 3 + 2) * 4 + 3]
    # the first wave has all components in the middle, sqrt(0.1 pi); the second, one step further, a negative last one
    first = math.sqrt(0.1 * math.pi) * (1 + 2 / 2 + 3)
    t, y, x = (math.pi * (0.1 / math.pi) ** ((0.5 + STEP**power) % 1) for power in (1, 2, 3))
    second = t * 1 + y * 2 / 2 - x * 3
    wanted = torch.tensor([math.cos(first), math.sin(first), math.cos(second), math.sin(second)])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_waves_are_spread_over_sizes_and_directions():
    grid = Grid(2, 2, 2)
    waves = torch.view_as_complex(fourier_positions(grid, 768).unflatten(1, (-1, 2))).reshape(2, 2, 2, -1)
    components = torch.stack([waves[1, 0, 0], waves[0, 1, 0], waves[0, 0, 1]]).angle()
    assert components.abs().min() >= 0.1 - 1e-5
    for axis in components.abs():
        # logarithms uniform between 0.1 and pi: a tenth of the waves in each tenth
        share = ((axis / 0.1).log() / math.log(10 * math.pi)).histc(10, 0, 1) / 384
        assert (share - 0.1).abs().max() < 0.02
    signs = (components[1:] > 0).int()
    counts = torch.bincount(2 * signs[0] + signs[1], minlength=4)
    assert counts.tolist() == [96] * 4


def test_a_wave_through_time_and_space_moves():
    # what moves at the wave's own speed sees it stand still: no single axis has such a wave
    grid = Grid(3, 1, 9)
    waves = torch.view_as_complex(fourier_positions(grid, 192).unflatten(1, (-1, 2))).reshape(3, 9, 96)
    time, column = waves[1, 0].angle(), waves[0, 1].angle()
    product = waves[1, 4]
    torch.testing.assert_close(product, torch.polar(torch.ones(96), time + 4 * column), atol=1e-4, rtol=0)
