"""The identity autoencoder, for diffusion in pixel space."""

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.streaming import FrameGroups
from vidlab.clip import Stride


class Identity(FrameGroups):
    """Latents are the pixels themselves: 3 channels, stride 1."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 3
        self.stride = Stride(1, 1, 1)

    @override
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        self.check_clip(pixels)
        return pixels

    @override
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        self.check_latents(latents)
        return latents
