"""The protocol of every video denoiser."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from vidlab.clip import DenoiserInput, DenoiserOutput


@dataclass(frozen=True)
class LatentShape:
    """The latents a backbone is built for. Sizes are those of training; others are allowed where they divide."""

    channels: int
    frames: int
    height: int
    width: int


class VideoDenoiser(nn.Module, ABC):
    """Reads noisy latents and conditions, returns a prediction in the shape of the latents.

    Args of every subclass begin with ``latent: LatentShape`` and ``text_width: int``; the rest is its own.
    ``features`` names what can be requested.
    """

    features: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, input: DenoiserInput) -> DenoiserOutput:
        """Predict the objective's target.

        Raises:
            ValueError: a requested feature this backbone does not have, or latents it cannot take.
        """

    @abstractmethod
    def token_count(self, latent: LatentShape) -> int:
        """Tokens per clip that the backbone processes for latents of this shape."""

    def check_requested(self, requested: frozenset[str]) -> None:
        """Refuse features that this backbone does not have."""
        unknown = requested - self.features
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no feature {sorted(unknown)}; it has {sorted(self.features) or 'none'}"
            )
