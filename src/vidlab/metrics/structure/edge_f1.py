"""F1 of the edges of a video against those it was told to follow."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from vidlab.conditioning.structure.canny import Canny
from vidlab.conditioning.structure.signals import SignalExtractor, SourceClips
from vidlab.errors import UserError
from vidlab.metrics.base import ClipMetric


class EdgeF1(ClipMetric):
    """How closely the edges of clips follow those of their references, in [0, 1], frame by frame.

    Precision is the share of edge pixels of the clip with an edge of the reference in the same frame at most
    ``tolerance`` rows and columns away, recall that of the reference's with one of the clip; the score is their
    harmonic mean over all frames of a clip (Martin et al. 2004, whose matching is one to one, which this is not). A
    clip and a reference without any edge agree: 1.

    Args:
        extractor: finds the edges of both; None is Canny's detector with its defaults.
        tolerance: in pixels.

    Raises:
        UserError: a tolerance below 0.
    """

    name: ClassVar[str] = "edge_f1"
    reference_kind = "paired"
    higher_is_better = True

    def __init__(self, extractor: SignalExtractor | None = None, tolerance: int = 1) -> None:
        super().__init__()
        if tolerance < 0:
            raise UserError(f"edge_f1: tolerance={tolerance} must be 0 or more pixels.")
        self.extractor: SignalExtractor = extractor or Canny()
        self.tolerance = tolerance

    @override
    def settings(self) -> Mapping[str, str]:
        return {"extractor": repr(self.extractor), "tolerance": f"{self.tolerance} px"}

    @override
    def score(
        self,
        videos: Shaped[Tensor, "B 3 T H W"],
        reference: Shaped[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Shaped[Tensor, "B"]:
        assert reference is not None
        found, told = (self.extractor.extract(SourceClips(clips)) >= 0.5 for clips in (videos, reference))
        return edge_f1(found, told, self.tolerance)


def edge_f1(
    found: Bool[Tensor, "B 1 T H W"], told: Bool[Tensor, "B 1 T H W"], tolerance: int = 1
) -> Float[Tensor, "B"]:
    """F1 of each clip's edges against those that it was told, float64.

    Args:
        found: edges of the clips.
        told: edges that they were to follow.
        tolerance: rows and columns that two edges may be apart.
    """
    precision, recall = _share(found, near(told, tolerance)), _share(told, near(found, tolerance))
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    either, both = found | told, found.flatten(1).any(1) & told.flatten(1).any(1)
    return torch.where(both, score, (~either.flatten(1).any(1)).double())


def near(edges: Bool[Tensor, "B 1 T H W"], tolerance: int) -> Bool[Tensor, "B 1 T H W"]:
    """Pixels with an edge at most so many rows and columns away in their frame."""
    size = 2 * tolerance + 1
    return F.max_pool3d(edges.float(), (1, size, size), stride=1, padding=(0, tolerance, tolerance)) > 0


def _share(edges: Tensor, where: Tensor) -> Float[Tensor, "B"]:
    counted = edges.flatten(1).sum(1).double()
    return (edges & where).flatten(1).sum(1).double() / counted.clamp(min=1)
