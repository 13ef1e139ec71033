import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vidlab.losses.autoencoding import kl_loss, reconstruction_loss, wavelet_loss


def test_reconstruction_by_hand():
    x = torch.zeros(2, 3, 4, 2, 2)
    y = torch.full_like(x, 0.5)
    # 3 * 2 * 2 values of a frame are each off by one half; every frame is one unit from its counterpart
    assert reconstruction_loss(x, y).item() == 6
    assert reconstruction_loss(x, y, torch.ones(8)).item() == 6 + 12
    assert reconstruction_loss(x, y, torch.arange(8.0), 0.1).item() == pytest.approx(6 + 0.1 * 3.5 * 12)


def test_reconstruction_is_the_published_sum():
    """Per value of a frame, absolute error plus the frame's distance; summed and divided by the frames."""
    x, y, distance = torch.randn(2, 3, 5, 4, 6), torch.randn(2, 3, 5, 4, 6), torch.rand(10)
    frames = (x - y).abs().transpose(1, 2).flatten(0, 1) + 0.7 * distance.view(10, 1, 1, 1)
    torch.testing.assert_close(reconstruction_loss(x, y, distance, 0.7), frames.sum() / 10)


def test_kl_is_that_of_the_distributions():
    mean, log_variance = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(kl_loss(mean, log_variance), expected)
    assert kl_loss(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)) == 0
    one, four = torch.ones(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), math.log(4.0))
    assert kl_loss(one, four).item() == pytest.approx(2 - math.log(2))  # (1 + 4 - 1 - log 4) / 2


def bands(seed) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 12, 3, 4, 4, generator=generator, dtype=torch.float64),
            torch.randn(2, 24, 2, 2, 2, generator=generator, dtype=torch.float64)]  # fmt: skip


def test_the_wavelet_loss_is_equation_2():
    ours, theirs = bands(0), bands(1)
    by_hand = sum(float((a - b).abs().sum()) for a, b in zip(ours, theirs, strict=True)) / 2
    assert wavelet_loss(theirs, ours).item() == pytest.approx(by_hand)
    assert wavelet_loss(ours, ours) == 0


def test_the_wavelet_loss_by_finite_differences():
    ours, theirs = bands(0), bands(1)
    for side in (ours, theirs):
        for level in side:
            level.requires_grad_()
    wavelet_loss(theirs, ours).backward()
    step = 1e-6
    for side in (ours, theirs):
        for level in side:
            for place in (0, 17, level.numel() - 1):
                found = []
                for sign in (1, -1):
                    with torch.no_grad():
                        level.view(-1)[place] += sign * step
                        found.append(wavelet_loss(theirs, ours).item())
                        level.view(-1)[place] -= sign * step
                slope = (found[0] - found[1]) / (2 * step)
                assert level.grad.view(-1)[place].item() == pytest.approx(slope, abs=1e-6) and abs(slope) > 0.4


def test_levels_must_match():
    ours, theirs = bands(0), bands(1)
    for side in (ours[:1], [], ours[::-1]):
        with pytest.raises(ValueError, match="bands of encoder and decoder differ in shape"):
            wavelet_loss(theirs, side)
