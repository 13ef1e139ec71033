"""Resolutions of pyramid flow: latents and noise at half the size, a quarter, and so on; and back up."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vidlab.errors import UserError

Latents = Float[Tensor, "B C T H W"]
Pyramid = tuple[Tensor, ...]  # (B, C, T, h, w) at every level, each twice the size of the one before


def halved(latents: Latents) -> Float[Tensor, "B C T half_H half_W"]:
    """Bilinear at half the size, which is the mean of each 2x2 block."""
    return F.avg_pool3d(latents, (1, 2, 2))


def doubled(latents: Latents) -> Float[Tensor, "B C T two_H two_W"]:
    """Nearest neighbor at twice the size: every value fills a 2x2 block."""
    return latents.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def block_means(latents: Latents) -> Latents:
    """P: every value replaced by the mean of its 2x2 block; sides that are odd stay as they are.

    Odd sides can only be those of a first stage, which has no coarser one to be told of.
    """
    return latents if latents.shape[-1] % 2 or latents.shape[-2] % 2 else doubled(halved(latents))


def latent_pyramid(latents: Latents, levels: int) -> Pyramid:
    """Clean latents at ``levels`` resolutions, coarsest first; the last is the one given."""
    return _pyramid(latents, levels, 1.0)


def noise_pyramid(noise: Latents, levels: int) -> Pyramid:
    """Noise at ``levels`` resolutions, coarsest first: 2x2 means times 2, which keeps the variance at 1."""
    return _pyramid(noise, levels, 2.0)


def block_noise(noise: Latents, gamma: float = 1 / 3) -> Latents:
    """Noise of variance 1 whose four values of a 2x2 block have correlation -gamma.

    sqrt(1 + gamma) (z - m) + sqrt(1 - 3 gamma) m, with m the block's mean: both parts are projections, so the
    covariance (1 + gamma) I - gamma J is exact for every gamma in (0, 1/3], also at 1/3, where it is singular, has no
    Cholesky factor, and each block sums to zero.

    Args:
        noise: z, standard normal.
        gamma: minus the correlation.
    """
    mean = doubled(halved(noise))  # (B, C, T, H, W), constant within each block
    return math.sqrt(1 + gamma) * (noise - mean) + math.sqrt(max(1 - 3 * gamma, 0.0)) * mean


def check_divides(height: int, width: int, levels: int) -> None:
    """Refuse latents that cannot be halved often enough.

    Raises:
        UserError: naming the setting to change.
    """
    for name, size in (("height", height), ("width", width)):
        if size % 2 ** (levels - 1):
            fitting = next(n for n in range(levels, 0, -1) if size % 2 ** (n - 1) == 0)
            raise UserError(
                f"objective.stages={levels}: latents of {name} {size} cannot be halved {levels - 1} times. Use "
                f"objective.stages={fitting}, or another data.{name}."
            )


def _pyramid(finest: Latents, levels: int, gain: float) -> Pyramid:
    found = [finest]
    for _ in range(levels - 1):
        found.append(gain * halved(found[-1]))
    return tuple(reversed(found))
