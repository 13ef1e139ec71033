"""The condition of MM-DiM: noise level and pooled text as one vector, for text and for every frame."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
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

    def forward(self, input: DenoiserInput) -> Float[Tensor, "B D"] | Float[Tensor, "B T D"]:
        """SiLU(temb), one vector per clip, or per latent frame where each has its noise level."""
        temb = self.time(input.embedded_t)
        if input.text is not None:
            pooled = self.pooled(input.text.pooled.to(self.time.mlp.get_parameter("0.weight").dtype))
            temb = temb + (pooled if temb.ndim == 2 else pooled[:, None])
        return F.silu(temb)


@dataclass(frozen=True)
class StreamConditions:
    """The activated condition where it is read.

    Args:
        text: of the text.
        frames: of all frames, or per token where noise levels differ.
        predicted: of the predicted frames alone.
    """

    text: Float[Tensor, "B 1 D"]
    frames: Float[Tensor, "B #V D"]
    predicted: Float[Tensor, "B #P D"]

    def joint(self, slots: int) -> Float[Tensor, "B #L D"]:
        """Of [text, frames]."""
        if self.frames.shape[1] == 1:
            return self.frames
        return torch.cat([self.text.expand(-1, slots, -1), self.frames], dim=1)


def spread(
    condition: Float[Tensor, "B D"] | Float[Tensor, "B T D"], patch_frames: int, grid: Grid, frames: FrameGrids
) -> StreamConditions:
    """One condition for all, history included (Pyramid Flow); text and history read the mean where frames differ."""
    predicted = per_token(condition, patch_frames, grid)
    if condition.ndim == 2:
        return StreamConditions(predicted, predicted, predicted)
    mean = condition.mean(dim=1, keepdim=True)
    known = mean.expand(-1, frames.tokens - grid.tokens, -1)
    return StreamConditions(mean, torch.cat([known, predicted], dim=1), predicted)
