"""An exactly invertible autoencoder without weights: blocks of pixels in an orthonormal Haar basis."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.autoencoders.streaming import FrameGroups
from vidlab.clip import Stride
from vidlab.errors import UserError


def haar_matrix(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal Haar matrix (float64); rows are the scaling function, then wavelets from coarse to fine.

    ``size`` is a power of two. Haar 1910; for size 2 the rows are (1, 1) / sqrt 2 and (1, -1) / sqrt 2.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    coarse = torch.kron(haar_matrix(size // 2), torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    fine = torch.kron(torch.eye(size // 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    return torch.cat([coarse, fine]) / math.sqrt(2)  # (size, size)


class Haar(FrameGroups):
    """Block-wise orthonormal 3-D Haar transform: the tensor product of one Haar matrix per axis.

    The transform preserves squared error and is inverted by its transpose. Channels are ordered
    (color, time, height, width), each axis from coarse to fine, so the first channel of a color is its block
    mean times sqrt(frames * height * width).

    Args:
        frames, height, width: block size per axis, powers of two.
        scale: the one scalar that latents are multiplied by. The orthonormal scale (1) is kept by default:
            standardizing each band separately made learning about four times worse.

    Raises:
        UserError: a block size that is no power of two, or a scale that is not positive.
    """

    basis: Tensor

    def __init__(self, frames: int = 2, height: int = 4, width: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        for name, size in {"frames": frames, "height": height, "width": width}.items():
            if size < 1 or size & (size - 1):
                raise UserError(f"autoencoder.{name}={size}: Haar blocks are powers of two (1, 2, 4, 8, ...).")
        if scale <= 0:
            raise UserError(f"autoencoder.scale={scale} must be positive.")
        self.stride = Stride(frames, height, width)
        self.channels = 3 * frames * height * width
        self.scale = scale
        space = torch.kron(haar_matrix(height), haar_matrix(width))
        basis = torch.kron(haar_matrix(frames), space)
        self.register_buffer("basis", basis.float(), persistent=False)

    @override
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        self.check_clip(pixels)
        s = self.stride
        # (B, T', H', W', 3, K): the K pixels of a block last
        blocks = rearrange(pixels, "b c (t p) (h q) (w r) -> b t h w c (p q r)", p=s.frames, q=s.height, r=s.width)
        with torch.autocast(pixels.device.type, enabled=False):
            coefficients = blocks.float() @ (self.scale * self.basis).mT
        return rearrange(coefficients, "b t h w c k -> b (c k) t h w")  # (B, C, T', H', W')

    @override
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        self.check_latents(latents)
        s = self.stride
        coefficients = rearrange(latents, "b (c k) t h w -> b t h w c k", c=3)  # (B, T', H', W', 3, K)
        with torch.autocast(latents.device.type, enabled=False):
            blocks = coefficients.float() @ (self.basis / self.scale)  # the transpose inverts: (B, T', H', W', 3, K)
        return rearrange(blocks, "b t h w c (p q r) -> b c (t p) (h q) (w r)", p=s.frames, q=s.height, r=s.width)
