import itertools
import math

import pytest
import torch
from torch.nn.functional import conv2d, conv3d

from vidlab.layers.causal import Stream, whole
from vidlab.layers.wavelets import (
    EXACT,
    RELEASED,
    causal_haar3d,
    haar2d,
    haar3d,
    inverse_causal_haar3d,
    inverse_haar2d,
    inverse_haar3d,
)

LOW, HIGH = (torch.tensor([1.0, sign], dtype=torch.float64) / math.sqrt(2) for sign in (1, -1))


def clip(frames=4, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, frames, 4, 6, dtype=dtype)


def test_the_exact_gain():
    assert pytest.approx((1 / math.sqrt(2)) ** 3, rel=1e-15) == EXACT


def test_equation_1_by_convolution():
    x = clip()
    kernels = torch.stack([torch.einsum("t,h,w->thw", *f) for f in itertools.product((LOW, HIGH), repeat=3)])
    expected = conv3d(x.flatten(0, 1)[:, None], kernels[:, None], stride=2).unflatten(0, (2, 3))
    torch.testing.assert_close(haar3d(x), expected.transpose(1, 2).flatten(1, 2))


def test_one_block_by_hand():
    x = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64).view(1, 1, 2, 2, 2)
    # sum, columns, rows, both, time, ...: 36, 4 x -1, 2 x -2, 0, -16, 0, 0, 0
    expected = torch.tensor([36.0, -4, -8, 0, -16, 0, 0, 0], dtype=torch.float64) / math.sqrt(8)
    torch.testing.assert_close(haar3d(x).flatten(), expected)
    assert haar2d(x)[0, :, 0].flatten().tolist() == [5, -2, -1, 0]  # low, high by rows, high by columns, both


def test_frames_by_convolution():
    x = clip()
    kernels = torch.stack([torch.outer(h, w) for w in (LOW, HIGH) for h in (LOW, HIGH)])
    frames = x.transpose(1, 2).flatten(0, 2)[:, None]
    expected = conv2d(frames, kernels[:, None], stride=2).unflatten(0, (2, 4, 3)).permute(0, 3, 2, 1, 4, 5)
    torch.testing.assert_close(haar2d(x), expected.flatten(1, 2))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 2e-15), (torch.float32, 1e-6)])
def test_inverses_and_energy_to_machine_precision(dtype, limit):
    x = clip(dtype=dtype)
    for forward, inverse in ((haar3d, inverse_haar3d), (haar2d, inverse_haar2d)):
        bands = forward(x)
        assert (inverse(bands) - x).abs().max() <= limit
        assert bands.square().sum().item() == pytest.approx(x.square().sum().item(), rel=limit)


@pytest.mark.parametrize("frames", [1, 3, 5, 9])
def test_the_first_frame_stands_for_two(frames):
    x = clip(frames)
    bands = causal_haar3d(x, whole())
    assert bands.shape == (2, 24, (frames + 1) // 2, 2, 3)
    assert bands[:, 12:, 0].abs().max() == 0  # no change in time between a frame and its copy
    assert (inverse_causal_haar3d(bands, whole()) - x).abs().max() <= 2e-15


def test_the_published_kernels_gain_1_000264_a_level():
    x = clip(5)
    bands = causal_haar3d(x, whole(), RELEASED)
    padded = torch.cat([x[:, :, :1], x], dim=2)
    assert (bands.square().sum() / padded.square().sum()).item() == pytest.approx(1.000264, abs=5e-7)
    back = inverse_causal_haar3d(bands, whole(), RELEASED)
    torch.testing.assert_close(back / x, torch.full_like(x, 8 * 0.3536**2))


def test_chunks():
    x, stream = clip(9), Stream()
    parts, back = [], []
    for part in x.split((1, 2, 6), dim=2):
        parts.append(causal_haar3d(part, stream))
        back.append(inverse_causal_haar3d(parts[-1], stream))
        stream.first = False
    torch.testing.assert_close(torch.cat(parts, dim=2), causal_haar3d(x, whole()), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(back, dim=2), x)


def test_half_precision_is_summed_in_single():
    assert (
        haar3d(clip(dtype=torch.bfloat16)).dtype
        == inverse_haar2d(clip(dtype=torch.float16)[:, :1].repeat(1, 4, 1, 1, 1)).dtype
        == torch.float32
    )
