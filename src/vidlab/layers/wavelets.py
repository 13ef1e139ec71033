"""Haar wavelet transforms of videos in space and time, orthonormal, with exact inverses.

Bands are stacked along the channels, each with the channels of the input, the low-pass band first. They are sums and
differences of neighbors, so nothing is stored and nothing is learned.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.layers.causal import Stream

EXACT = 1 / (2 * math.sqrt(2))
RELEASED = (
    0.3536  # the kernels of the published WF-VAE weights: four digits, so each level gains 8 * 0.3536^2 = 1.000264
)
_TIME, _ROWS, _COLUMNS = 2, 3, 4


def haar3d(x: Float[Tensor, "B C T H W"], gain: float = EXACT) -> Float[Tensor, "B K t h w"]:
    """One level in time and space, K = 8 C; equation 1 of the Open-Sora Plan report (arXiv 2412.00131).

    Band 4 i + 2 j + k is high-pass in time for i = 1, along rows (vertically) for j = 1, along columns for k = 1.

    Args:
        x: frames, rows and columns in even numbers.
        gain: entries of the kernels; ``EXACT`` makes the transform orthonormal.
    """
    return gain * _analysis(x, (_TIME, _ROWS, _COLUMNS))


def inverse_haar3d(bands: Float[Tensor, "B K t h w"], gain: float = EXACT) -> Float[Tensor, "B C T H W"]:
    """The transpose of ``haar3d``, which is its inverse up to a factor 8 gain^2 (1 for the exact gain)."""
    return gain * _synthesis(bands, (_TIME, _ROWS, _COLUMNS))


def haar2d(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B K T h w"]:
    """One level in space, frame by frame, K = 4 C: low, high vertically, high horizontally, high in both."""
    return 0.5 * _analysis(x, (_COLUMNS, _ROWS))


def inverse_haar2d(bands: Float[Tensor, "B K T h w"]) -> Float[Tensor, "B C T H W"]:
    """The inverse of ``haar2d``."""
    return 0.5 * _synthesis(bands, (_COLUMNS, _ROWS))


def causal_haar3d(x: Float[Tensor, "B C T H W"], stream: Stream, gain: float = EXACT) -> Float[Tensor, "B K t h w"]:
    """``haar3d`` of 1 + 2n frames, the first standing for two; 1 + n frames of bands.

    Later chunks of a stream have an even number of frames.
    """
    return haar3d(torch.cat([x[:, :, :1], x], dim=2) if stream.first else x, gain)


def inverse_causal_haar3d(
    bands: Float[Tensor, "B K t h w"], stream: Stream, gain: float = EXACT
) -> Float[Tensor, "B C T H W"]:
    """The inverse of ``causal_haar3d``: the copy of the first frame is dropped."""
    x = inverse_haar3d(bands, gain)
    return x[:, :, 1:] if stream.first else x


def _analysis(x: Tensor, axes: Sequence[int]) -> Tensor:
    bands = [at_least_single(x)]
    for axis in axes:
        pairs = [band.unflatten(axis, (-1, 2)).unbind(axis + 1) for band in bands]
        bands = [band for even, odd in pairs for band in (even + odd, even - odd)]
    return torch.cat(bands, dim=1)  # C channels to 2^n C, n axes halved


def _synthesis(x: Tensor, axes: Sequence[int]) -> Tensor:
    bands = list(at_least_single(x).chunk(2 ** len(axes), dim=1))
    for axis in reversed(axes):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        bands = [torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1) for low, high in pairs]
    return bands[0]


def at_least_single(x: Tensor) -> Tensor:
    """In float32, or float64 where it is: sums of eight in half precision would lose what the transform promises."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
