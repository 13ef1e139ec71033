"""Reward learning: frozen scorers of pixels as a term of the loss (M4V, arXiv 2506.10915)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import ClipBatch, LossContext
from vidlab.errors import UserError


@runtime_checkable
class Scorer(Protocol):
    """A frozen judgment of pixels through which gradients pass; higher is better."""

    def __call__(self, pixels: Float[Tensor, "B 3 T H W"], batch: ClipBatch) -> Float[Tensor, "B"]:
        """One number per clip.

        Args:
            pixels: decoded predictions of some frames of each clip, about in [-1, 1], not clamped.
            batch: the clips they belong to: captions, factors.
        """
        ...


@dataclass(frozen=True)
class Reward:
    """L = -sum over scorers of r(D(x)), with x the clean latents that a prediction implies and D the decoder.

    In M4V x is that of the last stage of pyramid flow,

        x = [x_t + (s_e - s_t) / (s_e - s_s) v - (1 - s_e) x_0] / s_e,

    s being the share of signal (of the input, at the start and at the end of the stage), v = end - start and x_0 the
    noise. ``LossContext.x0`` is that x, whatever the objective. Predictions below full resolution, such as those of
    earlier stages, get no reward, and neither do frames before the last ``frames`` of a clip: the term of such a batch
    is 0.

    A predicted latent frame is decoded without those before it. A causal autoencoder, whose first latent frame is one
    frame, takes it for a first frame.

    Args:
        scorers: by name; r_1 is HPSv2 and r_2 CLIP in the paper.
        weight: of the term; 0.1 in the paper.
        frames: latent frames at the end of a clip that are scored; 8 in the paper. None scores all.
        requested: features of the backbone; none.

    Raises:
        UserError: no scorer, or no frame.
    """

    scorers: Mapping[str, Scorer | None]
    weight: float = 0.1
    frames: int | None = 8
    requested: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not any(self.scorers.values()):
            raise UserError("losses.reward.scorers is empty: give one, or use losses=none.")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"losses.reward.frames={self.frames} must be at least 1, or null for all.")

    def __call__(self, context: LossContext) -> Float[Tensor, ""]:
        """Minus the mean over clips of the sum of scores."""
        count = self._counted(context)
        if not count:
            return torch.zeros((), device=context.input.latents.device)
        pixels = context.decode(context.x0[:, :, -count:])  # (B, 3, T, H, W)
        scores = [scorer(pixels, context.batch) for scorer in self.scorers.values() if scorer is not None]  # (B,) each
        return -torch.stack(scores).sum(dim=0).mean()

    def _counted(self, context: LossContext) -> int:
        """How many of the predicted latent frames, from the last one back, are scored."""
        latents, whole = context.input.latents, context.latent
        if tuple(latents.shape[3:]) != (whole.height, whole.width):
            return 0
        predicted = latents.shape[2]
        if self.frames is None:
            return predicted
        earlier = sum(len(part.frame_index) for part in context.input.history)
        return max(0, min(predicted, earlier + predicted - (whole.frames - self.frames)))
