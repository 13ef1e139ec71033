"""Motion from optical flow, without weights: how much, how smooth, and whether pixels keep their color on the way.

VBench measures smoothness and dynamic degree with trained networks (AMT, RAFT). Here OpenCV's DIS flow takes their
place, so the numbers answer the same questions but are not VBench's, and the names say so (``_dis``).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vidlab.metrics.base import ClipMetric
from vidlab.metrics.vbench.flow import PRESET, flow_between, flows, gray_frames, make_estimator, warp

SIDE = 256  # pixels of the short side that lengths of flow are stated for
_FASTEST = 0.05  # share of the pixels of a pair of frames that counts for dynamic degree


class FlowMetric(ClipMetric):
    """A score per clip from its frames' optical flow."""

    def settings(self) -> Mapping[str, str]:
        """The estimator of flow."""
        return {"flow": f"DIS {PRESET}"}

    def score(
        self,
        videos: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"] | None,
        captions: Sequence[str],
    ) -> Float[Tensor, "B"]:
        """One number per clip."""
        return torch.tensor([self.score_clip(video) for video in videos], dtype=torch.float64)

    @abstractmethod
    def score_clip(self, video: Float[Tensor, "3 T H W"]) -> float:
        """The score of one clip."""


class MotionMagnitude(FlowMetric):
    """The mean length of flow between consecutive frames, in pixels per frame at a short side of 256.

    At least 0; neither direction is better. Frozen frames bring it to 0; shuffled frames and noise raise it, as jumps
    and noise look like motion; blur hardly moves it.
    """

    name: ClassVar[str] = "motion_magnitude_dis"
    minimum_frames = 2
    higher_is_better = None

    def score_clip(self, video: Float[Tensor, "3 T H W"]) -> float:
        """Pixels per frame, scaled to a short side of 256."""
        lengths = np.linalg.norm(flows(gray_frames(video)), axis=-1)
        return float(lengths.mean()) * SIDE / min(video.shape[2:])


class DynamicDegree(FlowMetric):
    """The share of clips that move, by VBench's rule (arXiv:2311.17982 and its program) with DIS in place of RAFT.

    Of each pair of consecutive frames the mean length of the fastest 5 % of flow is taken. A clip moves when at least
    round(4 T / 16) pairs exceed 6 (short side / 256) pixels. VBench scores 8 frames per second: set ``stride`` to the
    clips' rate over 8. In [0, 1]; neither direction is better. Frozen frames bring it to 0; shuffling and noise may
    raise it.
    """

    name: ClassVar[str] = "dynamic_degree_dis"
    minimum_frames = 2
    higher_is_better = None

    def score_clip(self, video: Float[Tensor, "3 T H W"]) -> float:
        """1.0 for a clip that moves, else 0.0."""
        lengths = np.linalg.norm(flows(gray_frames(video)), axis=-1)
        return float(moves(lengths, frames=video.shape[1]))


def moves(lengths: NDArray[Any], frames: int) -> bool:
    """Whether a clip of ``frames`` frames moves, from the lengths (T - 1, H, W) of its flow in pixels."""
    pairs, height, width = lengths.shape
    fastest = max(int(height * width * _FASTEST), 1)
    speeds = np.sort(lengths.reshape(pairs, -1), axis=1)[:, -fastest:].mean(axis=1)
    needed = max(round(4 * frames / 16), 1)
    return int((speeds > 6 * min(height, width) / SIDE).sum()) >= needed


class MotionSmoothness(FlowMetric):
    """How well each second frame follows from its neighbors: (255 - MAE) / 255 on the scale 0 to 255.

    VBench's motion smoothness (arXiv:2311.17982) with flow in place of the interpolation network AMT: the two
    neighbors are carried half-way along the flow between them, averaged, and compared with the frame that was left
    out. In [0, 1]; higher is better. Noise and shuffled frames lower it. Blind to blur, which raises it, and fooled by
    frozen frames, which score 1.
    """

    name: ClassVar[str] = "motion_smoothness_dis"
    minimum_frames = 3
    higher_is_better = True

    def score_clip(self, video: Float[Tensor, "3 T H W"]) -> float:
        """The score of one clip."""
        gray, color, estimator = gray_frames(video), _color(video), make_estimator()
        flows(gray[:2])  # refuses frames that are too small
        errors = []
        for middle in range(1, len(gray) - 1, 2):
            before, after = middle - 1, middle + 1
            forward = flow_between(gray[before], gray[after], estimator)
            backward = flow_between(gray[after], gray[before], estimator)
            # Flow at the middle frame is not known; that of its neighbors at the same place stands for it.
            guess = (warp(color[before], backward / 2) + warp(color[after], forward / 2)) / 2
            errors.append(float(np.abs(guess - color[middle]).mean()))
        return 1 - float(np.mean(errors)) / 255


class WarpingError(FlowMetric):
    """Mean squared difference of a frame and the next one warped back onto it, pixels in [0, 1] (the warping error of
    Lai et al. 2018, arXiv:1808.00449), over pixels that are visible in both, mean over channels, pairs and clips.

    A pixel is taken as hidden where the flow there and the flow back do not cancel:
    |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5 (Ruder et al. 2016, arXiv:1604.08610). At least 0; lower is better.
    Noise and shuffled frames raise it. Blind to blur, which lowers it, and fooled by frozen frames, which score 0.
    Pairs of frames without any visible pixel count as if every pixel were visible.
    """

    name: ClassVar[str] = "warping_error_dis"
    minimum_frames = 2
    higher_is_better = False

    def score_clip(self, video: Float[Tensor, "3 T H W"]) -> float:
        """The error of one clip."""
        gray, color = gray_frames(video), _color(video) / 255
        there, back = flows(gray), flows(gray[::-1])[::-1]
        errors = []
        for number, (forward, backward) in enumerate(zip(there, back, strict=True)):
            difference = ((color[number] - warp(color[number + 1], forward)) ** 2).mean(axis=-1)
            seen = visible(forward, warp(np.ascontiguousarray(backward), forward))
            errors.append(float(difference[seen].mean() if seen.any() else difference.mean()))
        return float(np.mean(errors))


def visible(forward: NDArray[Any], returned: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W): where flow (H, W, 2) and the flow back, read at its end, cancel, as ``WarpingError`` has it."""
    gap = ((forward + returned) ** 2).sum(-1)
    return np.asarray(gap <= 0.01 * ((forward**2).sum(-1) + (returned**2).sum(-1)) + 0.5)


def _color(video: Tensor) -> NDArray[np.float32]:
    """(T, H, W, 3) on the scale 0 to 255."""
    return np.ascontiguousarray(((video.float() + 1) * 127.5).permute(1, 2, 3, 0).cpu().numpy())
