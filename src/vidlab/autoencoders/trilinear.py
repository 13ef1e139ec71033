"""A baseline autoencoder without weights: the clip at a lower resolution, by trilinear interpolation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from vidlab.autoencoders.base import Autoencoder
from vidlab.clip import Stride
from vidlab.errors import UserError


class Trilinear(Autoencoder):
    """The clip itself at a lower resolution, with at most as many values as the latents of another autoencoder.

    Latents have the other's shape: channels (1 + n) (H / height) (W / width) numbers for 1 + n ``frames`` frames. They
    hold a small clip of 3 colors and t x h x w positions, one value after the other, and zeros in what is left. It is
    made by trilinear interpolation between the centers of pixels, without a wider filter on the way down, and the clip
    is made of it in the same way. A baseline for reconstruction; no denoiser finds neighbors in such latents.

    The small clip has t = ceil(T / span) frames, and rows and columns in the proportion of the clip's, as many as fit.
    The defaults match WF-VAE's 4 x 8 x 8 with 8 channels: of 9 x 64 x 64 pixels 1536 values, and a small clip of
    1 x 22 x 22. Of all t, this one reconstructs the held-out clips of ``data=clips`` best in PSNR, SSIM and LPIPS, as
    they move little (23.9 dB; t = 2, which is ``span=5``, has 2 x 16 x 16 and 22.2 dB, t = 3 20.9 dB, t = 9 18.3 dB;
    with a wider filter on the way down the order is the same, and LPIPS worse in each).

    Args:
        channels: of the latents matched.
        frames, height, width: their stride in pixels; the first frame has a latent frame of its own.
        span: frames that one frame of the small clip stands for.

    Raises:
        UserError: a number below 1, or too few values for one position.
    """

    def __init__(self, channels: int = 8, frames: int = 4, height: int = 8, width: int = 8, span: int = 9) -> None:
        super().__init__()
        at_least = {"channels": (channels, 3), "frames": (frames, 1), "height": (height, 1), "width": (width, 1)}
        for name, (size, least) in {**at_least, "span": (span, 1)}.items():
            if size < least:
                raise UserError(f"autoencoder.{name}={size} must be {least} or more.")
        self.stride = Stride(frames, height, width, first_frame_alone=True)
        self.channels, self.span = channels, span

    @override
    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        self.check_clip(pixels)
        shape = self.latent_shape(*pixels.shape[2:])  # (C, T', H', W'): the small clip's values, then zeros
        with torch.autocast(pixels.device.type, enabled=False):
            small = F.interpolate(pixels.float(), size=self.grid(shape), mode="trilinear").flatten(1)  # (B, 3 t h w)
        return F.pad(small, (0, math.prod(shape) - small.shape[1])).view(-1, *shape)

    @override
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        self.check_latents(latents)
        grid = self.grid(tuple(latents.shape[1:]))
        small = latents.flatten(1)[:, : 3 * math.prod(grid)].view(-1, 3, *grid)  # (B, 3, t, h, w)
        with torch.autocast(latents.device.type, enabled=False):
            return F.interpolate(small.float(), size=self._clip_size(tuple(latents.shape[1:])), mode="trilinear")

    def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(t, h, w) of the small clip for latents (C, T', H', W').

        Rows and columns are in the clip's proportion, rounded down.
        """
        positions = math.prod(latent_shape) // 3
        frames, height, width = self._clip_size(latent_shape)
        kept = min(-(-frames // self.span), positions)
        scale = min(math.sqrt(positions / (kept * height * width)), 1.0)
        rows, columns = (max(int(side * scale + 1e-9), 1) for side in (height, width))
        return kept, rows, min(columns, positions // (kept * rows))

    def _clip_size(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(T, H, W) of latents (C, T', H', W')."""
        _, frames, height, width = latent_shape
        stride = self.stride
        return 1 + (frames - 1) * stride.frames, height * stride.height, width * stride.width
