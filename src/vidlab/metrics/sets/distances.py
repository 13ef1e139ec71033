"""Distances between two sets of features, from the features themselves."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "n D"], second: Float[Tensor, "m D"]) -> float:
    """The Fréchet distance of the Gaussians with the means and covariances of two sets.

    |mean_1 - mean_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) (Dowson and Landau 1982; equation 6 of Heusel et al. 2017,
    arXiv:1706.08500), with covariances over n - 1, in float64. With C = F^T F, the eigenvalues of C_1 C_2 are the
    squares of the singular values of F_1 F_2^T, so the trace of the root is their sum. This is right for any rank, also
    with fewer clips than features, where a general matrix square root is not.

    Needs at least 2 rows in each set.
    """
    first, second = first.double(), second.double()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    factors = [_factor(features) for features in (first, second)]
    spread = factors[0].square().sum() + factors[1].square().sum()
    root = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return float(mean + spread - 2 * root)


def _factor(features: Tensor) -> Tensor:
    """F with F^T F the covariance, of as few rows as possible."""
    rows, width = features.shape
    centered = (features - features.mean(0)) / (rows - 1) ** 0.5
    if rows <= width:
        return centered
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    # Rounding makes eigenvalues that are zero slightly negative.
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def kernel_distance(first: Float[Tensor, "n D"], second: Float[Tensor, "m D"], degree: int = 3) -> float:
    """The unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^degree.

    Equation 4 of Bińkowski et al. 2018 (arXiv:1801.01401), on all pairs, in float64. It is zero on average for two sets
    of one distribution at any n, and may then be negative. Needs at least 2 rows in each set.
    """
    first, second = first.double(), second.double()
    n, m = len(first), len(second)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** degree

    within_1, within_2 = kernel(first, first), kernel(second, second)
    same_1 = (within_1.sum() - within_1.trace()) / (n * (n - 1))
    same_2 = (within_2.sum() - within_2.trace()) / (m * (m - 1))
    return float(same_1 + same_2 - 2 * kernel(first, second).mean())
