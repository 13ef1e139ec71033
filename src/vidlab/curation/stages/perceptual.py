"""LPIPS between consecutive frames, the jump cuts that it shows, and how much moves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Decision, Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import UserError
from vidlab.perceptual.lpips import LPIPS, load_lpips, unit_length
from vidlab.perceptual.weights import weights_digest

SERIES, MOTION, MOTION_AGAIN = "lpips", "motion", "motion_cropped"
LPIPS_WEIGHTS = "asset:lpips-alexnet.ckpt"


@dataclass(frozen=True)
class _LPIPSMeasure(Measure):
    """What the measures with LPIPS share; see ``FrameDistances`` for the settings."""

    short_side: int = 112
    every: int = 1
    weights_path: str | None = None

    not_in_version = ("weights_path",)

    def __post_init__(self) -> None:
        if self.short_side < 31:
            raise UserError(f"short_side={self.short_side}: LPIPS reads frames of at least 31 pixels a side.")
        if self.every < 1:
            raise UserError(f"every={self.every}: it must be 1 or more.")

    @override
    def weights(self) -> Sequence[str]:
        return [weights_digest(self.weights_path or LPIPS_WEIGHTS)]

    def distances(self, video: VideoFile, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """As ``frame_distances``, with these settings."""
        model = lpips_model(self.weights_path)
        return frame_distances(model, video, clips, self.short_side, self.every)


@dataclass(frozen=True)
class FrameDistances(_LPIPSMeasure):
    """LPIPS (AlexNet) of consecutive frames, as the series ``lpips``.

    Open-Sora Plan (section 4.2, step 2) skips frames when it reads and does not state how many, nor the size at which
    distances are taken; both are settings. Entry i is the distance of frames ``i * every`` and ``(i + 1) * every``.

    Args:
        short_side: pixels to which frames are reduced; LPIPS reads at least 31.
        every: 2 takes every second frame. A cut is then known to within one frame, and the frame between is left out.
        weights_path: a local copy of the weights; None fetches the pinned ones (10 MB) on first use.

    Raises:
        UserError: a setting is out of range.
    """

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SERIES,)

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        found = self.distances(video, clips)
        return [Measurement(series={SERIES: tuple(found.get(clip.id, ()))}) for clip in clips]


@cache
def lpips_model(weights: str | None) -> LPIPS:
    """The network, once per process."""
    return load_lpips("alex", weights)


@torch.no_grad()
def frame_distances(
    model: LPIPS, video: VideoFile, clips: Sequence[Clip], short_side: int, every: int
) -> dict[str, list[float]]:
    """LPIPS of consecutive frames of each clip, by the clip's id; features of a frame are computed once."""
    found: dict[str, list[float]] = {}
    last: tuple[str, list[Tensor]] | None = None
    for clip, _, frames in video.small_frames(clips, short_side, every):
        taps = [unit_length(tap) for tap in model.features(_pixels(frames, model.least_side))]
        own = found.setdefault(clip.id, [])
        if last is not None and last[0] == clip.id:
            taps = [torch.cat([before, tap]) for before, tap in zip(last[1], taps, strict=True)]
        own.extend(_distances(model, taps))
        last = clip.id, [tap[-1:].clone() for tap in taps]
    return found


def _pixels(frames: np.ndarray, least: int) -> Tensor:
    """uint8 (T, H, W, 3) as (T, 3, H, W) in [-1, 1]; sides below what the network reads are doubled until they fit."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1.0)
    short = min(pixels.shape[2:])
    if short < least:
        factor = -(-least // short)
        pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return pixels


def _distances(model: LPIPS, taps: Sequence[Tensor]) -> Iterator[float]:
    """Equation 1 of LPIPS for neighbors along the first axis of taps (T, C_l, H_l, W_l), each of length 1."""
    total = torch.zeros(len(taps[0]) - 1)
    for tap, head in zip(taps, model.heads, strict=True):
        total += (tap[1:] - tap[:-1]).square().mul_(head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    yield from total.tolist()


@dataclass(frozen=True)
class JumpCuts(Decision):
    """Cuts clips where LPIPS jumps, keeps parts of a length, and takes the mean of the rest as their motion.

    With l the distances of a clip, mu their mean and sigma their standard deviation, z = (l - mu) / sigma, the cuts are
    where z > z_potential and (l > l_sure or (z > z_sure and l > l_likely)): Open-Sora Plan, section 4.2, step 2. Its
    "variance sigma" is read as the standard deviation, as z is a zero score.

    Args:
        every: as of the measure; what lies between two of its frames belongs to no part at a cut.
        z_potential: z_threshold of the paper.
        l_sure: l_threshold.
        z_sure: z_threshold2.
        l_likely: l_threshold2.
        min_frames: of a part that is kept.
        max_frames: of a part that is kept.

    Raises:
        UserError: a setting is out of range.
    """

    every: int = 1
    z_potential: float = 2.0
    l_sure: float = 0.35
    z_sure: float = 3.2
    l_likely: float = 0.2
    min_frames: int = 32
    max_frames: int = 512

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_frames < self.min_frames:
            raise UserError(
                f"every={self.every}, min_frames={self.min_frames}, max_frames={self.max_frames}: the first must be 1 "
                "or more, and the last not below the one before."
            )

    @override
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        distances = np.array(clip.series[SERIES])
        cuts = self.cuts(distances)
        starts = [0, *(cut + 1 for cut in cuts)]  # entries of distances that a part begins with
        ends = [*cuts, len(distances)]
        parts = []
        for begin, end in zip(starts, ends, strict=True):
            first = clip.start + begin * self.every
            last = clip.end if end == len(distances) else clip.start + end * self.every + 1
            part = clip.part(first, last, drop=SERIES)
            inside = distances[begin:end]
            motion = float(inside.mean()) if len(inside) else 0.0
            parts.append(self._of_length(replace(part, scores={**part.scores, MOTION: motion}), step))
        return parts

    def cuts(self, distances: np.ndarray) -> list[int]:
        """The entries of distances (T - 1,) at which there is a cut."""
        if len(distances) < 2 or distances.std() == 0:
            return []
        z = (distances - distances.mean()) / distances.std()
        sure = (distances > self.l_sure) | ((z > self.z_sure) & (distances > self.l_likely))
        return [int(at) for at in np.flatnonzero((z > self.z_potential) & sure)]

    def _of_length(self, clip: Clip, step: str) -> Clip:
        if clip.frames < self.min_frames:
            return clip.rejected(step, f"fewer than {self.min_frames} frames between cuts")
        if clip.frames > self.max_frames:
            return clip.rejected(step, f"more than {self.max_frames} frames between cuts")
        return clip


@dataclass(frozen=True)
class MotionAgain(_LPIPSMeasure):
    """The mean LPIPS of consecutive frames within the crop, as ``motion_cropped``: changing subtitles are no motion.

    A clip that was not cropped keeps its ``motion``: Open-Sora Plan, section 4.2, step 6.

    Args:
        short_side: as of ``FrameDistances``.
        every: as of ``FrameDistances``.
        weights_path: as of ``FrameDistances``.

    Raises:
        UserError: a setting is out of range.
    """

    uses = (MOTION,)

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (MOTION_AGAIN,)

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        again = [clip for clip in clips if clip.crop != video.source.crop or MOTION not in clip.scores]
        found = self.distances(video, again)
        means = {key: float(np.mean(values)) if values else 0.0 for key, values in found.items()}
        return [
            Measurement({MOTION_AGAIN: means[clip.id] if clip.id in means else clip.scores.get(MOTION, 0.0)})
            for clip in clips
        ]
