"""Fréchet video distance."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.metrics.sets.distances import frechet_distance
from vidlab.metrics.sets.features import Extractor, SetDistance, i3d_extractor
from vidlab.perceptual.i3d import MIN_FRAMES


class FVD(SetDistance):
    """Fréchet distance of I3D's 400 Kinetics logits (Unterthiner et al. 2018, arXiv:1812.01717).

    The usual protocol is 2048 clips of 16 frames against 2048, at 224 x 224. Lower is better, 0 for equal sets. FVD is
    biased: it falls with N by more than most models differ, so results state N and what two parts of the reference are
    apart. It judges the content of frames far more than their motion (Ge et al. 2024, arXiv:2404.12391): shuffled
    frames move it far less than noise.

    Args:
        extractor: clips to features; None is I3D on its pinned weights.
        frames: frames scored per clip, at least 9.
        stride, seed, draws: as for every distance of sets.
    """

    name: ClassVar[str] = "fvd"
    minimum_frames = MIN_FRAMES

    def __init__(
        self, extractor: Extractor | None = None, frames: int = 16, stride: int = 1, seed: int = 0, draws: int = 20
    ) -> None:
        super().__init__(extractor or i3d_extractor(), frames, stride, seed, draws)

    @override
    def distance(self, features: Float[Tensor, "n D"], reference: Float[Tensor, "m D"]) -> float:
        return frechet_distance(features, reference)
