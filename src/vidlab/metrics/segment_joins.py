"""How visible the places are at which the clips of a long video meet."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.errors import DataError, UserError
from vidlab.metrics.base import ClipMetric

_LEAST = 1e-5  # roughness that counts as none: far below a gray level, above rounding


class SegmentJoins(ClipMetric):
    """Roughness at the joins of a long video over its roughness elsewhere.

    Roughness is the mean absolute second difference of frames, |x[t-1] - 2 x[t] + x[t+1]|, which is zero for anything
    that changes evenly. A join lies before the first frame that a further clip adds, at frames f, f + (f - o), ...
    for clips of f frames that share o; the second differences around the two frames beside it count as its own. 1 where
    the joins are as smooth as the rest, lower is better; pieces that do not fit come out far above 1. A video that
    nowhere changes unevenly has 1. Fooled by a video that jumps everywhere: read it beside motion smoothness.

    Args:
        clip_frames: f, frames of one clip of the model.
        overlap: o, frames that neighbors share, as ``generate.py overlap=...``; 1 where gaps were filled in
            (``interpolate=true``).
        frames, stride, seed, size, resize, resamples: as for every metric of single clips.

    Raises:
        UserError: clips that add nothing.
        DataError: a video with no join, or none but joins.
    """

    name: ClassVar[str] = "segment_joins"
    minimum_frames = 3
    higher_is_better = False

    def __init__(
        self,
        clip_frames: int = 8,
        overlap: int = 1,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        resamples: int = 1000,
    ) -> None:
        super().__init__(frames, stride, seed, resamples=resamples)
        if not 0 <= overlap < clip_frames:
            raise UserError(f"metrics.segment_joins.overlap={overlap}: it must lie in 0 to {clip_frames - 1}.")
        self.clip_frames, self.overlap = clip_frames, overlap

    @override
    def settings(self) -> Mapping[str, str]:
        return {"clip_frames": str(self.clip_frames), "overlap": str(self.overlap)}

    @override
    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        frames = videos.shape[2]
        joins = torch.tensor(range(self.clip_frames, frames, self.clip_frames - self.overlap))
        middle = torch.arange(1, frames - 1)  # the frames with a second difference around them
        beside = torch.isin(middle, torch.cat([joins - 1, joins]))
        if not beside.any() or beside.all():
            raise DataError(
                f"segment_joins: videos of {frames} frames have no join of clips of {self.clip_frames} frames that "
                f"share {self.overlap}, or nothing else: metrics.segment_joins.clip_frames and overlap say how "
                "they were made."
            )
        rough = videos.double().diff(n=2, dim=2).abs().mean(dim=(1, 3, 4))  # (B, T - 2)
        at, elsewhere = rough[:, beside].mean(1), rough[:, ~beside].mean(1)
        return (at + _LEAST) / (elsewhere + _LEAST)
