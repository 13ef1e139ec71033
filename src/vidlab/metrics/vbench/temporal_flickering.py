"""Temporal flickering of VBench."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vidlab.metrics.base import ClipMetric


class TemporalFlickering(ClipMetric):
    """(255 - MAE) / 255 with the mean absolute difference of consecutive frames on the scale 0 to 255 (VBench, Huang et
    al. 2023, arXiv:2311.17982, temporal flickering), mean over pairs of frames, then over clips.

    In [0, 1], 1 for still clips; higher is better. VBench measures it on clips of still scenes, since motion lowers it
    too: on moving clips compare it only with clips of like motion. Noise and shuffled frames lower it. Blind to blur,
    which raises it, and fooled by frozen frames, which score 1.
    """

    name: ClassVar[str] = "temporal_flickering"
    minimum_frames = 2
    higher_is_better = True

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """The score per clip."""
        # A width of 2 is one of 255, so half the difference is already the quotient.
        return 1 - videos.double().diff(dim=2).abs().mean((1, 2, 3, 4)) / 2
