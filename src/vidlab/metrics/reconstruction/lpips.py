"""LPIPS of reconstructions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.metrics.base import ClipMetric, ReferenceKind
from vidlab.metrics.sets.features import fingerprint
from vidlab.perceptual.lpips import LPIPS, load_lpips
from vidlab.perceptual.resize import Filter

_FRAMES_PER_PASS = 64


class VideoLPIPS(ClipMetric):
    """LPIPS per frame, then the mean over frames, then over clips; see ``vidlab.perceptual.lpips``.

    At least 0, for equal clips; lower is better. Sensitive to blur, noise, shuffled and frozen frames.

    Args:
        network: the distance of images; None is the AlexNet one on its pinned weights.
        frames, stride, seed, size, resize, resamples: as for every metric of single clips. AlexNet needs 35 pixels a
            side: smaller clips need ``size``.
    """

    name: ClassVar[str] = "lpips"
    reference_kind: ClassVar[ReferenceKind] = "paired"
    higher_is_better = False

    def __init__(
        self,
        network: LPIPS | None = None,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        size: Sequence[int] | None = None,
        resize: Filter = "bilinear_antialias",
        resamples: int = 1000,
    ) -> None:
        super().__init__(frames, stride, seed, size, resize, resamples)
        network = network or load_lpips()
        self._settings = {"net": network.net, "weights": fingerprint(network)}
        # In a tuple, so that the frozen weights are no part of the metric's own state.
        self._network = (network,)

    @property
    def least_side(self) -> int:
        """What the trunk needs, where clips are not resized."""
        return self._network[0].least_side if self.size is None else 1

    def settings(self) -> Mapping[str, str]:
        """The trunk and its weights."""
        return self._settings

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """Mean distance per clip."""
        assert reference is not None
        network = self._network[0].to(videos.device)
        pairs = [x.transpose(1, 2).flatten(0, 1).split(_FRAMES_PER_PASS) for x in (videos, reference)]
        with torch.inference_mode():
            frames = torch.cat([network(a, b) for a, b in zip(*pairs, strict=True)])
        return frames.view(len(videos), -1).mean(1).clone()
