"""Data augmentation of autoencoder training: clips flipped in space and time, rows and columns exchanged."""

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.randomness import KeyedRNG


def mirrored(pixels: Float[Tensor, "B 3 T H W"], draw: KeyedRNG) -> Float[Tensor, "B 3 T H W"]:
    """Each clip in one of its 16 symmetric forms, 8 where rows and columns differ in number, all equally likely.

    Upside down, left to right, backwards in time, and with rows and columns exchanged: each half of the time.

    Args:
        pixels: clips.
        draw: random numbers of the clips.
    """
    coins = draw.uniform("mirror", (4,)).cpu() < 0.5
    return torch.stack([_mirrored(clip, *coin.tolist()) for clip, coin in zip(pixels, coins, strict=True)])


def _mirrored(
    clip: Float[Tensor, "3 T H W"], rows: bool, columns: bool, time: bool, exchange: bool
) -> Float[Tensor, "3 T H W"]:
    clip = clip.flip([axis for axis, flip in ((1, time), (2, rows), (3, columns)) if flip])
    return clip.transpose(2, 3) if exchange and clip.shape[2] == clip.shape[3] else clip
