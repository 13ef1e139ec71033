"""The protocol of signal extractors, and what they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vidlab.factors import Factors


@dataclass(frozen=True)
class SourceClips:
    """Clips that signals are taken from.

    Args:
        pixels: in [-1, 1].
        factors: the true factors of rendered clips, one for each; empty where nobody knows them.
    """

    pixels: Float[Tensor, "B 3 T H W"]
    factors: Sequence[Factors | None] = ()


@runtime_checkable
class SignalExtractor(Protocol):
    """Takes one kind of signal from clips.

    ``channels`` is how many the signal has. Extractors of as many channels can stand in for one another.
    """

    @property
    def channels(self) -> int:
        """Channels of the signal."""
        ...

    def extract(self, clips: SourceClips) -> Float[Tensor, "B c T H W"]:
        """The signal in [0, 1], at the size of the pixels and where they are.

        Raises:
            UserError: what it reads is not there.
        """
        ...


@dataclass(frozen=True)
class GivenSignal(SignalExtractor):
    """The clip is the signal already, such as a video of edges that another program made: its brightness."""

    channels: int = 1

    def extract(self, clips: SourceClips) -> Float[Tensor, "B 1 T H W"]:
        """Brightness in [0, 1]; see ``brightness``."""
        return brightness(clips.pixels)


def brightness(pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 1 T H W"]:
    """Luma in [0, 1] of pixels in [-1, 1], by the weights of ITU-R BT.601: 0.299, 0.587, 0.114."""
    red, green, blue = (pixels.float() + 1).div(2).clamp(0, 1).unbind(1)  # (B, T, H, W) each
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
