"""Structural similarity of reconstructions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import DataError
from vidlab.metrics.base import ClipMetric, ReferenceKind

_LEAST = 11  # pixels a side: the Gaussian window of the paper


class SSIM(ClipMetric):
    """Structural similarity per frame, then the mean over frames, then over clips (Wang et al. 2004, equation 13).

    The window is Gaussian, 11 pixels wide with standard deviation 1.5, K1 = 0.01, K2 = 0.03, data range 2, computed by
    torchmetrics. At most 1, for equal clips; higher is better. Sensitive to noise, blur, shuffled and frozen frames.

    Raises:
        DataError: frames smaller than 11 x 11.
    """

    name: ClassVar[str] = "ssim"
    reference_kind: ClassVar[ReferenceKind] = "paired"
    higher_is_better = True

    def settings(self) -> Mapping[str, str]:
        """The data range, as a width."""
        return {"data_range": "2"}

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """Mean similarity per clip."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        assert reference is not None
        if min(videos.shape[3:]) < _LEAST:
            raise DataError(f"ssim reads frames of at least {_LEAST} x {_LEAST}, these are {tuple(videos.shape[3:])}.")
        # variances are small differences of large numbers, which bf16 would lose
        with torch.autocast(videos.device.type, enabled=False):
            scores = [
                structural_similarity_index_measure(
                    a.transpose(0, 1), b.transpose(0, 1), data_range=2.0, reduction="none"
                )
                for a, b in zip(videos.float(), reference.float(), strict=True)
            ]
        return torch.stack([torch.as_tensor(frames).mean() for frames in scores])
