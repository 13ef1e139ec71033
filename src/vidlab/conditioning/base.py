"""The protocol of conditioning on known frames, and the arithmetic of known frames in latent space."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidlab.clip import Controls, Known, LatentShape, Stride
from vidlab.errors import UserError
from vidlab.randomness import Draw

Pixels = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C t h w"]
Frames = Bool[Tensor, "B T"]
Encode = Callable[[Pixels], Latents]


@dataclass(frozen=True)
class Evidence:
    """What a backbone is told of the clip besides its caption: latents that are given, or extra input channels."""

    known: Known | None = None
    controls: Controls | None = None


@runtime_checkable
class Conditioning(Protocol):
    """Chooses what is known of a training clip, and puts what a user knows into the same form.

    ``takes_frames`` tells whether any frame can be given at generation.
    """

    takes_frames: bool

    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        """Channels of each part of the controls; () without controls."""
        ...

    def usual_frames(self, frames: int) -> int:
        """How many frames at the start of a clip of ``frames`` training makes known where a user does not say."""
        ...

    def observe(self, pixels: Pixels, x0: Latents, encode: Encode, draw: Draw, step: int) -> Evidence:
        """What is known of training clips whose latents are ``x0``, at a training step."""
        ...

    def given(self, pixels: Pixels, frames: Frames, encode: Encode) -> Evidence:
        """Evidence of the frames marked True; the pixels of others are not looked at.

        Raises:
            UserError: frames that this conditioning cannot make known.
        """
        ...


@dataclass(frozen=True)
class NoConditioning:
    """Nothing is known but the caption."""

    takes_frames: bool = False

    def control_channels(self, latent: LatentShape, stride: Stride) -> tuple[int, ...]:
        """None."""
        return ()

    def usual_frames(self, frames: int) -> int:
        """None."""
        return 0

    def observe(self, pixels: Pixels, x0: Latents, encode: Encode, draw: Draw, step: int) -> Evidence:
        """Nothing."""
        return Evidence()

    def given(self, pixels: Pixels, frames: Frames, encode: Encode) -> Evidence:
        """Nothing.

        Raises:
            UserError: a frame is marked.
        """
        if frames.any():
            raise UserError(
                "This model was trained without conditioning on frames, so no image or video can be given. "
                "Train one with conditioning=frame_replacement or conditioning=masked_video."
            )
        return Evidence()


def frames_per_latent(frames: int, latent_frames: int) -> tuple[int, bool]:
    """(pixel frames per latent frame, whether the first latent frame holds the first frame alone).

    A clip of f T' frames is cut evenly; one of 1 + f (T' - 1) frames comes from a causal autoencoder. The number f is a
    power of two, as temporal strides are; then at most one of the two fits (9 frames on 3 are 1 + 4 + 4, not 3 x 3),
    unless f is 1 and they mean the same.

    Raises:
        ValueError: neither.
    """
    even, uneven = divmod(frames, latent_frames)
    if not uneven and _power_of_two(even):
        return even, False
    after, uneven = divmod(frames - 1, max(latent_frames - 1, 1))
    if latent_frames > 1 and not uneven and _power_of_two(after):
        return after, True
    raise ValueError(f"{frames} frames do not map evenly onto {latent_frames} latent frames")


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def by_latent_frame(value: Tensor, latent_frames: int) -> Tensor:
    """(B, T, ...) per pixel frame to (B, T', f, ...) per latent frame; a lone first frame is repeated f times.

    Open-Sora Plan v1.3 folds masks this way: 93 frames become 24 x 4, of which the first four are frame 0.
    """
    factor, causal = frames_per_latent(value.shape[1], latent_frames)
    if causal:
        value = torch.cat([value[:, :1].repeat_interleave(factor, dim=1), value[:, 1:]], dim=1)
    return value.unflatten(1, (latent_frames, factor))
