"""The protocol of everything that turns pixels into latents and back."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from vidlab.clip import Stride
from vidlab.errors import UserError


class Autoencoder(nn.Module, ABC):
    """Pixels (B, 3, T, H, W) in [-1, 1] to latents (B, C, T', H', W') of about unit variance, and back.

    Subclasses set ``channels`` and ``stride``.
    """

    channels: int
    stride: Stride

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """Latents of a clip."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels of latents; not clamped."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') for a clip size.

        Raises:
            UserError: a size is not a multiple of the stride.
        """
        sizes = {"frames": frames, "height": height, "width": width}
        for name, size in sizes.items():
            step = getattr(self.stride, name)
            if size % step:
                raise UserError(
                    f"data.{name}={size} does not fit {type(self).__name__}: it must be a multiple of {step}. "
                    f"Use data.{name}={max(size // step, 1) * step}."
                )
        return (
            self.channels,
            frames // self.stride.frames,
            height // self.stride.height,
            width // self.stride.width,
        )
