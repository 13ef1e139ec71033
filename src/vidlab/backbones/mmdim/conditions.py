"""The condition of MM-DiM: noise level and pooled text as one vector, for text and for every frame."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vidlab.clip import DenoiserInput
from vidlab.layers.embeddings import TimestepEmbedder
from vidlab.layers.layouts import Grid
from vidlab.layers.mixers.recomposition import FrameGrids
from vidlab.layers.patches import per_token


class VectorCondition(nn.Module):
    """temb = MLP(256 sinusoids of the embedded noise level, cosines first) + MLP(pooled text)."""

    def __init__(self, width: int, pooled_width: int) -> None:
        super().__init__()
        self.time = TimestepEmbedder(width)
        self.pooled = nn.Sequential(nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, input: DenoiserInput, t: Tensor | None = None) -> Float[Tensor, "B D"] | Float[Tensor, "B T D"]:
        """SiLU(temb), one vector per clip, or per latent frame where each has its noise level.

        Args:
            input: of the backbone.
            t: the embedded noise level; None is that of ``input``.
        """
        temb = self.time(input.embedded_t if t is None else t)  # (B, D) or (B, T, D)
        if input.text is not None:
            pooled = self.pooled(input.text.pooled.to(self.time.mlp.get_parameter("0.weight").dtype))
            temb = temb + (pooled if temb.ndim == 2 else pooled[:, None])
        return F.silu(temb)


@dataclass(frozen=True)
class StreamConditions:
    """The activated condition where it is read.

    Args:
        text: of the text.
        frames: of all frames, or per token where noise levels differ, or several of which ``places`` chooses.
        predicted: of the predicted frames alone.
        places: which row of ``frames`` each token of the frames reads; the first is that of the text.
    """

    text: Float[Tensor, "B 1 D"]
    frames: Float[Tensor, "B _ D"]
    predicted: Float[Tensor, "B #P D"]
    places: Int[Tensor, "V"] | None = None

    def joint(self, slots: int) -> Float[Tensor, "B _ D"]:
        """Of [text, frames]."""
        if self.frames.shape[1] == 1 or self.places is not None:
            return self.frames
        return torch.cat([self.text.expand(-1, slots, -1), self.frames], dim=1)  # (B, S + V, D)

    def joint_places(self, slots: int) -> Int[Tensor, "L"] | None:
        """Which row of ``joint`` each token of [text, frames] reads; None where it has one for each or for all."""
        return None if self.places is None else F.pad(self.places, (slots, 0))


def at_places(parts: Float[Tensor, "B c E"], places: Int[Tensor, "L"] | None) -> Float[Tensor, "B #L E"]:
    """What was made of a few conditions, laid out over the tokens that read them."""
    return parts if places is None else parts.index_select(1, places)


def spread(
    condition: Float[Tensor, "B D"] | Float[Tensor, "B T D"], patch_frames: int, grid: Grid, frames: FrameGrids
) -> StreamConditions:
    """One condition for all, history included (Pyramid Flow); text and history read the mean where frames differ."""
    predicted = per_token(condition, patch_frames, grid)
    if condition.ndim == 2:
        return StreamConditions(predicted, predicted, predicted)
    mean = condition.mean(dim=1, keepdim=True)  # (B, 1, D)
    known = mean.expand(-1, frames.tokens - grid.tokens, -1)  # (B, V - P, D)
    return StreamConditions(mean, torch.cat([known, predicted], dim=1), predicted)


def spread_clean(
    clean: Float[Tensor, "B D"],
    condition: Float[Tensor, "B D"] | Float[Tensor, "B T D"],
    patch_frames: int,
    grid: Grid,
    frames: FrameGrids,
) -> StreamConditions:
    """``clean`` for text and history, whatever the noise level of the predicted frames."""
    predicted = per_token(condition, patch_frames, grid)  # (B, 1 or P, D)
    text = clean[:, None]  # (B, 1, D)
    each = torch.arange(grid.tokens, device=clean.device) if predicted.shape[1] > 1 else clean.new_zeros(grid.tokens)
    places = F.pad(1 + each.long(), (frames.tokens - grid.tokens, 0))  # (V,)
    return StreamConditions(text, torch.cat([text, predicted], dim=1), predicted, places)
