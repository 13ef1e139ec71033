"""Peak signal-to-noise ratio of reconstructions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from vidlab.metrics.base import ClipMetric, ReferenceKind

_PEAK = 2.0  # pixels span [-1, 1]
_CEILING = 100.0  # decibels


class PSNR(ClipMetric):
    """10 log10(4 / MSE) in decibels, per frame, then the mean over frames, then over clips.

    The peak is 2, the span of [-1, 1]. Higher is better. A frame counts at most 100 dB, so that one that is reproduced
    exactly does not make the mean infinite. Sensitive to noise, blur, shuffled and frozen frames alike, as it compares
    pixels at their places.
    """

    name: ClassVar[str] = "psnr"
    reference_kind: ClassVar[ReferenceKind] = "paired"
    higher_is_better = True

    def settings(self) -> Mapping[str, str]:
        """The data range, as a width."""
        return {"data_range": f"{_PEAK:g}"}

    @override
    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        assert reference is not None
        errors = (videos.double() - reference.double()).square().mean((1, 3, 4))
        least = _PEAK**2 / 10 ** (_CEILING / 10)
        return (10 * (_PEAK**2 / errors.clamp(min=least)).log10()).mean(1)
