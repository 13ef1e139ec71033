"""Mean and spread of latents by channel, and the scale that brings them to unit variance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.base import Posterior

LEAST_STD = 1e-6  # a channel that says nothing is not blown up


@dataclass(frozen=True)
class LatentScale:
    """``(z - shift) * scale`` has about mean 0 and variance 1; one number for all channels, or one for each."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class LatentMoments:
    """Sums over latents, to which batches and ranks can be added.

    Args:
        sums: by channel, of how many there were, of z, and of z squared, in float64. A drawn z has the square
            mean^2 + variance, so the posterior's variance counts.
    """

    sums: Float[Tensor, "3 C"]

    @classmethod
    def of(cls, posterior: Posterior) -> "LatentMoments":
        """Of the latents of a batch."""
        mean = posterior.mean.double()
        square = mean.square()
        if posterior.log_variance is not None:
            square = square + posterior.log_variance.double().exp()
        count = torch.ones_like(mean)
        return cls(torch.stack([part.sum((0, 2, 3, 4)) for part in (count, mean, square)]))  # (3, C)

    def __add__(self, other: "LatentMoments") -> "LatentMoments":
        return LatentMoments(self.sums + other.sums)

    @property
    def mean(self) -> Float[Tensor, "C"]:
        """By channel."""
        return self.sums[1] / self.sums[0]

    @property
    def std(self) -> Float[Tensor, "C"]:
        """By channel."""
        return (self.sums[2] / self.sums[0] - self.mean.square()).clamp(min=0).sqrt()

    @property
    def together(self) -> "LatentMoments":
        """As if all channels were one."""
        return LatentMoments(self.sums.sum(1, keepdim=True))

    def scale(self, by_channel: bool) -> LatentScale:
        """The scale of each channel, or one for the channels together."""
        sums = self if by_channel else self.together
        channels = self.sums.shape[1] // sums.sums.shape[1]
        scale, shift = (1 / sums.std.clamp(min=LEAST_STD)).tolist(), sums.mean.tolist()
        return LatentScale(tuple(scale * channels), tuple(shift * channels))
