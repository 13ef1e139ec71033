import math

import torch

from vidlab.autoencoders.base import Posterior
from vidlab.autoencoders.haar import Haar


def filled(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, len(values), 1, 1, 1)


def test_a_sample_is_the_mean_plus_a_deviation_times_noise():
    posterior = Posterior(filled(1.0, 2.0), filled(0.0, 2 * math.log(3)))
    torch.testing.assert_close(posterior.sample(filled(0.5, -1.0)), filled(1.5, -1.0))
    assert torch.equal(posterior.mode, filled(1.0, 2.0))


def test_samples_have_the_mean_and_the_variance():
    posterior = Posterior(torch.full((1, 1, 1, 300, 300), 2.0), torch.full((1, 1, 1, 300, 300), math.log(0.25)))
    drawn = posterior.sample(torch.randn(1, 1, 1, 300, 300))
    assert abs(drawn.mean() - 2) < 0.01 and abs(drawn.var() - 0.25) < 0.01


def test_without_a_variance_there_is_nothing_to_draw():
    pixels = torch.rand(2, 3, 4, 8, 8) * 2 - 1
    posterior = Haar(4, 4, 4).posterior(pixels)
    assert posterior.log_variance is None
    assert torch.equal(posterior.sample(torch.randn_like(posterior.mean)), Haar(4, 4, 4).encode(pixels))
