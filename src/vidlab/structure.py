"""Structure signals that steer a denoiser: what is known of a clip's edges, depth or outlines, frame by frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

# What is added to the tokens of the latents behind a block of the given number, (B, L, D).
Additions = Callable[[int], Tensor]


@dataclass(frozen=True)
class StructureSignal:
    """Signals of a batch of clips, and how strongly they act.

    Args:
        maps: the signals in [0, 1] at the size of the pixels, one after the other; behind each a channel that is 1 at
            frames of which it is given. A signal is 0 at all others.
        strength: what is added to a denoiser is multiplied by it; 1 as in training, 0 leaves the denoiser alone.
        interval: noise levels (least, greatest) in [0, 1] at which anything is added; 0 is data and 1 is noise.
    """

    maps: Float[Tensor, "B K T H W"]
    strength: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def gain(self, t: Tensor) -> Float[Tensor, "B 1 1"]:
        """The factor on what is added, by clip; of clips with several noise levels the highest counts."""
        level = t if t.ndim == 1 else t.amax(dim=1)  # (B,)
        least, greatest = self.interval
        acts = (level >= least) & (level <= greatest)
        return (self.strength * acts.to(torch.float32))[:, None, None]

    def rows(self, part: slice) -> "StructureSignal":
        """Those of some clips."""
        return replace(self, maps=self.maps[part])

    def expanded(self, count: int) -> "StructureSignal":
        """The signals of one clip for as many."""
        return replace(self, maps=self.maps.expand(count, -1, -1, -1, -1))


def concatenate_signals(signals: Sequence[StructureSignal | None]) -> StructureSignal | None:
    """Stack signals along the batch.

    Raises:
        ValueError: some have none, or they act differently.
    """
    found = [signal for signal in signals if signal is not None]
    if not found:
        return None
    if len(found) < len(signals) or len({(one.strength, one.interval) for one in found}) != 1:
        raise ValueError("all conditions have structure signals of one strength and interval, or none has any")
    return replace(found[0], maps=torch.cat([one.maps for one in found]))


def with_addition(tokens: Float[Tensor, "B S D"], additions: Additions | None, number: int) -> Float[Tensor, "B S D"]:
    """A block's output and what is added to it (Open-Sora Plan, arXiv 2412.00131, eq. 16).

    Args:
        tokens: behind the block; those of the latents are the last ones of the sequence.
        additions: None adds nothing.
        number: of the block, from 0.
    """
    if additions is None:
        return tokens
    addition = additions(number).to(tokens.dtype)  # (B, L, D)
    before = tokens.shape[1] - addition.shape[1]  # of text or a history, which nothing is added to
    return tokens + (torch.nn.functional.pad(addition, (0, 0, before, 0)) if before else addition)
