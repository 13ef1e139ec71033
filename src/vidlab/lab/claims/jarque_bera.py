"""Table A1 of HARIVO: how often noise that frames share passes the Jarque-Bera test."""

import torch
from torch import Tensor

CHI_SQUARED_95 = 5.991464547107979  # upper 5 % of chi squared with two degrees of freedom: -2 ln 0.05


def mixed_noise(trials: int, frames: int, elements: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Noise of PYoCo's mixed model: every element N(0, 1), any two frames correlated by alpha^2 / (1 + alpha^2).

    Ge et al. 2023 (arXiv 2305.10474), section 3: a part that all frames share and a part of each frame's own.

    Args:
        trials: videos.
        frames: of each.
        elements: of a frame.
        alpha: strength of what is shared; 0 makes all elements independent.
        generator: of the numbers.

    Returns:
        (trials, frames, elements).
    """
    shared = torch.randn(trials, 1, elements, generator=generator) * alpha / (1 + alpha**2) ** 0.5
    return torch.randn(trials, frames, elements, generator=generator).div_((1 + alpha**2) ** 0.5).add_(shared)


def jarque_bera(samples: Tensor) -> Tensor:
    """n / 6 (skewness^2 + excess kurtosis^2 / 4) of each row; for independent normal samples about chi squared (2)."""
    centered = samples - samples.mean(dim=1, keepdim=True)
    square = centered.square()
    variance = square.mean(dim=1)
    skewness = (square * centered).mean(dim=1) / variance**1.5
    excess = square.square().mean(dim=1) / variance**2 - 3
    return samples.shape[1] / 6 * (skewness**2 + excess**2 / 4)


def accepted(trials: int, frames: int, elements: int, alpha: float, seed: int = 0, batch: int = 100) -> float:
    """Share of videos whose elements, all frames in one sample, pass at p > 0.05."""
    generator = torch.Generator().manual_seed(seed)
    passed = 0
    for start in range(0, trials, batch):
        noise = mixed_noise(min(batch, trials - start), frames, elements, alpha, generator)
        passed += int((jarque_bera(noise.flatten(1)) < CHI_SQUARED_95).sum())
    return passed / trials


def limit(frames: int, alpha: float, draws: int = 2_000_000) -> float:
    """What ``accepted`` tends to as frames grow: P(a X + b Y < 5.99) with X, Y chi squared (1).

    Skewness and kurtosis are means of third and fourth Hermite polynomials, whose covariance between elements
    correlated by r is r^3 and r^4: pooling F frames multiplies their variances by a = 1 + (F - 1) r^3 and
    b = 1 + (F - 1) r^4.
    """
    r = alpha**2 / (1 + alpha**2)
    x, y = torch.randn(2, draws, generator=torch.Generator().manual_seed(0)).square()
    return float(((1 + (frames - 1) * r**3) * x + (1 + (frames - 1) * r**4) * y < CHI_SQUARED_95).float().mean())
