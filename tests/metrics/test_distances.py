"""Fréchet and kernel distances and their intervals against values by hand and by other means."""

import math

import numpy as np
import pytest
import torch

from vidlab.metrics.intervals import bootstrap_mean, subsampled
from vidlab.metrics.sets.distances import frechet_distance, kernel_distance
from vidlab.metrics.sets.is_i3d_k400 import inception_score


def test_frechet_distance_by_hand():
    """On a line: (mean difference)^2 + (difference of standard deviations)^2."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [3.0], [9.0]])
    # means 1 and 5; variances over n - 1: 2 and 12
    assert frechet_distance(first, second) == pytest.approx(16 + (math.sqrt(12) - math.sqrt(2)) ** 2)


@pytest.mark.parametrize(("rows", "width"), [(200, 6), (5, 40), (40, 40)])
def test_frechet_distance_equals_the_matrix_square_root(rows, width):
    """Against scipy's square root of the product; where that is singular, of covariances with a grain of identity."""
    linalg = pytest.importorskip("scipy.linalg")
    draws = np.random.default_rng(0)
    first = draws.normal(size=(rows, width)) @ draws.normal(size=(width, width))
    second = draws.normal(size=(rows + 3, width)) + 0.5
    covs = [np.cov(x, rowvar=False) for x in (first, second)]
    grain = 1e-9 * np.eye(width) if rows <= width else 0 * np.eye(width)
    root = linalg.sqrtm((covs[0] + grain) @ (covs[1] + grain)).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    found = frechet_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found == pytest.approx(expected, rel=1e-3 if rows <= width else 1e-8)


@pytest.mark.parametrize("rows", [3, 64, 900])
def test_a_set_and_itself_are_less_than_a_hundredth_apart(rows):
    features = torch.randn(rows, 400, generator=torch.Generator().manual_seed(0)) * 9
    assert abs(frechet_distance(features, features.flip(0))) < 1e-2


def test_frechet_distance_of_commuting_covariances():
    """For diagonal covariances it is the sum over axes of the distances on a line; rank 1 against rank 1 included."""
    first, second = torch.tensor([[-1.0, 0], [1, 0]]), torch.tensor([[0.0, -2], [0, 2]])
    assert frechet_distance(first, second) == pytest.approx(2 + 8)  # orthogonal spreads share nothing


def test_kernel_distance_by_hand():
    """One feature, values (1, 2) against (0, 3), kernel (x y + 1)^3."""
    same_1, same_2 = (1 * 2 + 1) ** 3, (0 * 3 + 1) ** 3
    cross = ((0 + 1) ** 3 + (1 * 3 + 1) ** 3 + (0 + 1) ** 3 + (2 * 3 + 1) ** 3) / 4
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    assert kernel_distance(first, second) == pytest.approx(same_1 + same_2 - 2 * cross)


def test_kernel_distance_is_unbiased_and_frechet_is_not():
    draws = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 12, 8, generator=draws) for _ in range(400)]
    kernel = torch.tensor([kernel_distance(*pair) for pair in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / 20
    assert torch.tensor([frechet_distance(*pair) for pair in pairs[:50]]).mean() > 1


def test_inception_score_by_hand():
    sure = torch.full((6, 3), -1e4)
    sure[range(6), [0, 1, 2, 0, 1, 2]] = 0
    assert inception_score(sure, 1) == pytest.approx(3)  # certain, and every class as often
    assert inception_score(sure, 2) == pytest.approx(3)  # each half holds every class
    assert inception_score(torch.zeros(4, 3), 1) == pytest.approx(1)
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    marginal = [0.65, 0.35]
    divergence = sum(float(p[i, j]) * math.log(float(p[i, j]) / marginal[j]) for i in range(2) for j in range(2)) / 2
    assert inception_score(p.log(), 1) == pytest.approx(math.exp(divergence))


def test_bootstrap_covers_the_mean_and_narrows_with_n():
    draws = torch.Generator().manual_seed(0)
    hits = 0
    for n in range(200):
        found = bootstrap_mean((torch.randn(40, generator=draws) + 3).tolist(), 300, seed=n).interval
        hits += found.low <= 3 <= found.high
    assert 0.9 <= hits / 200 <= 0.985
    wide = bootstrap_mean(torch.randn(20, generator=draws).tolist()).interval
    narrow = bootstrap_mean(torch.randn(2000, generator=draws).tolist()).interval
    assert wide.half_width > 4 * narrow.half_width


def test_bootstrap_says_nothing_where_it_cannot():
    assert bootstrap_mean([1.0]).interval is None
    assert bootstrap_mean([1.0, math.inf]).interval is None
    assert bootstrap_mean([1.0, 2.0, 3.0], 500).p_value == pytest.approx(2 / 500)
    assert bootstrap_mean([-1.0, 1.0, -2.0, 2.0]).p_value > 0.5


def test_subsampled_interval_has_the_spread_of_new_sets():
    """The half-width over 1.96 is, on average, the standard deviation of the distance of newly drawn sets."""
    draws = torch.Generator().manual_seed(0)

    def new():
        return torch.randn(60, 2, generator=draws), torch.randn(60, 2, generator=draws) + 1

    def distance(first, second):
        return frechet_distance(first, second)

    values = torch.tensor([distance(*new()) for _ in range(300)])
    widths = []
    for n in range(30):
        a, b = new()
        found = subsampled(lambda i, j, a=a, b=b: distance(a[i], b[j]), distance(a, b), 60, 60, 40, seed=n)
        assert found.low < distance(a, b) < found.high
        widths.append(found.half_width / 1.96)
    assert sum(widths) / 30 == pytest.approx(values.std().item(), rel=0.2)


def test_subsampling_draws_without_replacement():
    seen = []

    def statistic(clips, references):
        assert len(set(clips.tolist())) == len(clips) == 5 and len(set(references.tolist())) == len(references) == 4
        seen.append(tuple(clips.tolist()))
        return float(clips.sum())

    assert subsampled(statistic, 0.0, 10, 8, 6) is not None and len(set(seen)) > 3
    assert subsampled(statistic, 0.0, 3, 8, 6) is None
