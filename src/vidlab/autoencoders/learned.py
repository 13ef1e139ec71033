"""What an autoencoder offers to its own training, besides encoding and decoding."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.autoencoders.wfvae.coders import Decoded
from vidlab.autoencoders.wfvae.model import Analysis


@runtime_checkable
class LearnedAutoencoder(Protocol):
    """An autoencoder that can be trained; z is what its networks speak, latents are ``(z - shift) * scale``."""

    def analyse(self, pixels: Float[Tensor, "B 3 T H W"]) -> Analysis:
        """Posterior of z, and the bands of the encoder."""
        ...

    def synthesise(self, z: Float[Tensor, "B C t h w"]) -> Decoded:
        """Pixels of z, and the bands of the decoder."""
        ...

    def last_layer(self) -> Tensor:
        """The weight at which the adversarial and the reconstruction loss are balanced."""
        ...

    def set_latent_scale(
        self, scale: float | Sequence[float] | None = None, shift: float | Sequence[float] | None = None
    ) -> None:
        """Store what brings latents to unit variance."""
        ...
