"""Fréchet inception distance of frames."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.metrics.sets.distances import frechet_distance
from vidlab.metrics.sets.features import Extractor, SetDistance, inception_extractor


class FrameFID(SetDistance):
    """Fréchet distance of Inception's 2048 features of frames (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    Every scored frame is one sample; intervals and the floor still draw whole clips, since the frames of a clip are
    alike. Lower is better. Blind to time: the order of frames does not enter, and frozen frames only through the
    content that is lost.

    Args:
        extractor: frames to features; None is Inception on its pinned weights.
        frames: frames scored per clip; None is all.
        stride, seed, draws: as for every distance of sets.
    """

    name: ClassVar[str] = "fid"

    def __init__(
        self,
        extractor: Extractor | None = None,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        draws: int = 10,
    ) -> None:
        super().__init__(extractor or inception_extractor(), frames, stride, seed, draws)

    @override
    def distance(self, features: Float[Tensor, "n D"], reference: Float[Tensor, "m D"]) -> float:
        return frechet_distance(features, reference)
