"""Held-out clips with everything a validation measures them with."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Conditions
from vidlab.randomness import KeyedRNG


@dataclass(frozen=True)
class HeldOut:
    """A validation batch, the same in every run and at every step.

    Args:
        pixels: the clips.
        x0: their latents.
        conditions: caption, known frames and micro-conditions.
        text_only: the same without known frames.
        draw: the random numbers.
    """

    pixels: Float[Tensor, "B 3 T H W"]
    x0: Float[Tensor, "B C t h w"]
    conditions: Conditions
    text_only: Conditions
    draw: KeyedRNG
