"""Whether a clip keeps showing the same thing: features of its frames compared with the first and the previous one."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vidlab.metrics.base import ClipMetric
from vidlab.metrics.sets.features import Extractor, FrameExtractor
from vidlab.perceptual.lpips import LPIPS, Net, load_lpips
from vidlab.perceptual.resize import Filter


class Consistency(ClipMetric):
    """The mean over frames of (cos with the previous frame + cos with the first) / 2, each cosine at least 0.

    VBench's formula for the subject and the background (arXiv:2311.17982), on other features: VBench uses DINO and
    CLIP, here any extractor of frames does, so values are comparable between runs but are not VBench's. In [0, 1], 1
    for still clips; higher is better. Shuffled frames lower it, through the part of the previous frame. Fooled by
    frozen frames, which score 1, and, with AlexNet, by noise, which makes all frames alike; it hardly sees blur.

    Args:
        extractor: frames to features; None is LPIPS' AlexNet on its pinned weights.
        frames, stride, seed, resamples: as for every metric of single clips. The extractor has its own size.
    """

    name: ClassVar[str] = "consistency"
    minimum_frames = 2
    higher_is_better = True

    def __init__(
        self,
        extractor: Extractor | None = None,
        frames: int | None = None,
        stride: int = 1,
        seed: int = 0,
        resamples: int = 1000,
    ) -> None:
        super().__init__(frames, stride, seed, resamples=resamples)
        self.extractor = extractor or lpips_frames()

    def settings(self) -> Mapping[str, str]:
        """The network, its weights and its own resize."""
        own = self.extractor
        return {"features": own.name, "weights": own.weights, "features resize": own.description}

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """Mean similarity per clip."""
        return frame_consistency(self.extractor(videos))


def frame_consistency(features: Float[Tensor, "B T D"]) -> Float[Tensor, "B"]:
    """The score of ``Consistency`` from features of frames."""
    rows = F.normalize(features.double(), dim=2)
    previous = (rows[:, 1:] * rows[:, :-1]).sum(2).clamp(min=0)
    first = (rows[:, 1:] * rows[:, :1]).sum(2).clamp(min=0)
    return ((previous + first) / 2).mean(1)


class _DeepestTap(nn.Module):
    """The deepest features of an LPIPS trunk, averaged over space."""

    def __init__(self, network: LPIPS) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.network.features(images)[-1].mean((2, 3))


def lpips_frames(
    net: Net = "alex", weights: str | None = None, size: int = 224, resize: Filter = "bilinear_antialias"
) -> FrameExtractor:
    """The last layer of LPIPS' trunk per frame, averaged over space; ``net`` and ``weights`` as in ``load_lpips``."""
    network = _DeepestTap(load_lpips(net, weights))
    return FrameExtractor(network, f"LPIPS {net} conv5", len(network.network.heads[-1]), size, resize)
