"""Kernel video distance."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.metrics.sets.distances import kernel_distance
from vidlab.metrics.sets.features import Extractor, SetDistance, i3d_extractor
from vidlab.perceptual.i3d import MIN_FRAMES


class KVD(SetDistance):
    """Squared maximum mean discrepancy of I3D's 400 logits with the kernel (x . y / 400 + 1)^3 (Unterthiner et al.
    2018, arXiv:1812.01717; unbiased estimate of Bińkowski et al. 2018).

    Lower is better; without bias, so 0 on average for two independent sets of one distribution at any N, and sometimes
    negative. A set against itself is well below 0, since the pairs of equal clips count in one term only. Of few clips
    it sees noise, and neither blur nor shuffled frames with certainty.

    Args:
        extractor: clips to features; None is I3D on its pinned weights.
        frames: frames scored per clip, at least 9.
        stride, seed, draws: as for every distance of sets.
    """

    name: ClassVar[str] = "kvd"
    minimum_frames = MIN_FRAMES
    biased = False

    def __init__(
        self, extractor: Extractor | None = None, frames: int = 16, stride: int = 1, seed: int = 0, draws: int = 20
    ) -> None:
        super().__init__(extractor or i3d_extractor(), frames, stride, seed, draws)

    @override
    def distance(self, features: Float[Tensor, "n D"], reference: Float[Tensor, "m D"]) -> float:
        return kernel_distance(features, reference)
