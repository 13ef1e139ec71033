"""Error of a video's depth against that of the video it was told to follow."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float, Shaped
from torch import Tensor
from typing_extensions import override

from vidlab.conditioning.structure.learned import MonocularDepth
from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import UserError
from vidlab.metrics.base import ClipMetric


class DepthError(ClipMetric):
    """How far the depth of clips is from that of their references, from 0, alike, to about 0.5.

    Depth is nearness as a monocular model sees it, from 0 to 1 within a clip, which has neither scale nor origin. So
    the clip's is first brought to the reference's by the scale, at least 0, and the shift of least squares over all its
    pixels (Ranftl et al. 2020, equation 4, there frame by frame); the score is the root of the mean square that is
    left. A clip that knows nothing of the reference's depth gets the standard deviation of the latter.

    Args:
        path: a folder or a hub id of a model of relative depth, as ``structure.depth.path``.
        extractor: tells nearness in place of that model.

    Raises:
        UserError: neither is given.
    """

    name: ClassVar[str] = "depth_error"
    reference_kind = "paired"
    higher_is_better = False

    def __init__(self, path: str | None = None, extractor: SignalExtractor | None = None) -> None:
        super().__init__()
        if not path and extractor is None:
            raise UserError(
                "metrics.depth_error.path is not set: give the folder of a model of transformers for relative depth, "
                "such as DPT (MiDaS) or Depth Anything."
            )
        self.extractor: SignalExtractor = extractor or MonocularDepth(path)

    @override
    def settings(self) -> Mapping[str, str]:
        return {"extractor": repr(self.extractor)}

    @override
    def score(
        self,
        videos: Shaped[Tensor, "B 3 T H W"],
        reference: Shaped[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Shaped[Tensor, "B"]:
        assert reference is not None
        return depth_error(*(self.extractor.extract(SourceClips(clips)) for clips in (videos, reference)))


def depth_error(found: Float[Tensor, "B 1 T H W"], told: Float[Tensor, "B 1 T H W"]) -> Float[Tensor, "B"]:
    """Root mean square of what is left of each clip's nearness when scale and shift are taken out, float64.

    Args:
        found: nearness in the clips, of any scale.
        told: that which they were to follow.
    """
    a, b = (values.flatten(1).double() for values in (found, told))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = ((a * b).sum(1) / a.square().sum(1).clamp(min=1e-12)).clamp(min=0)
    return (scale[:, None] * a - b).square().mean(1).sqrt()
