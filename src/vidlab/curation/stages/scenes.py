"""Detectors of cuts other than LPIPS, and cutting where they found some."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Decision, Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import UserError
from vidlab.perceptual.transnet import ASSET, HEIGHT, WIDTH, TransNetV2, load_transnet
from vidlab.perceptual.weights import weights_digest

SERIES = "cuts"


@dataclass(frozen=True)
class ContentCuts(Measure):
    """Cuts by PySceneDetect's ContentDetector, as the series ``cuts``: the first frame of each shot but the first.

    STIV (arXiv:2412.07730, appendix C.1) cuts with PySceneDetect and states no settings; these are the package's own.

    Args:
        threshold: of the mean change of hue, saturation and luma, each 0 to 255.
        min_scene_frames: shots shorter than this are joined to the one before.
        short_side: pixels to which frames are reduced.

    Raises:
        UserError: a setting is out of range.
    """

    threshold: float = 27.0
    min_scene_frames: int = 15
    short_side: int = 144

    def __post_init__(self) -> None:
        if self.min_scene_frames < 1 or self.short_side < 16:
            raise UserError(
                f"min_scene_frames={self.min_scene_frames}, short_side={self.short_side}: at least 1, and 16 pixels."
            )

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SERIES,)

    @override
    def weights(self) -> Sequence[str]:
        return [f"scenedetect {version('scenedetect')}"]

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        from scenedetect import ContentDetector, FrameTimecode

        found: dict[str, list[float]] = {clip.id: [] for clip in clips}
        detectors = {clip.id: ContentDetector(self.threshold, self.min_scene_frames) for clip in clips}
        for clip, first, frames in video.small_frames(clips, self.short_side):
            for number, frame in enumerate(frames, first):
                time = FrameTimecode(number, float(clip.fps))
                cuts = detectors[clip.id].process_frame(time, np.ascontiguousarray(frame[..., ::-1]))
                found[clip.id] += [float(cut.frame_num) for cut in cuts]
        for clip in clips:
            end = FrameTimecode(clip.frames, float(clip.fps))
            found[clip.id] += [float(cut.frame_num) for cut in detectors[clip.id].post_process(end)]
        return [Measurement(series={SERIES: tuple(sorted(set(found[clip.id])))}) for clip in clips]


@dataclass(frozen=True)
class TransNetCuts(Measure):
    """Cuts by TransNet V2, as the series ``cuts``: where its probability passes a threshold, a transition is left out.

    Args:
        threshold: of the probability; the authors take 0.5.
        weights_path: a local copy of the weights; None fetches the pinned ones (33 MB) on first use.

    Raises:
        UserError: a threshold out of range.
    """

    threshold: float = 0.5
    weights_path: str | None = None

    not_in_version = ("weights_path",)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold}: it must be 0 or more, and below 1.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SERIES,)

    @override
    def weights(self) -> Sequence[str]:
        return [weights_digest(self.weights_path or ASSET)]

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        import cv2

        model = load_transnet(self.weights_path)
        small: dict[str, list[np.ndarray]] = {clip.id: [] for clip in clips}
        for clip, _, frames in video.small_frames(clips, 2 * HEIGHT):
            small[clip.id] += [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames]
        return [Measurement(series={SERIES: tuple(self._cuts(model, small[clip.id]))}) for clip in clips]

    def _cuts(self, model: TransNetV2, frames: Sequence[np.ndarray]) -> Iterator[float]:
        """The frame behind the peak of each run of frames whose probability passes the threshold."""
        probabilities = model.transitions(torch.from_numpy(np.stack(frames))).numpy()
        above = np.flatnonzero(probabilities > self.threshold)
        for run in np.split(above, np.flatnonzero(np.diff(above) > 1) + 1) if len(above) else ():
            peak = int(run[np.argmax(probabilities[run])]) + 1
            if peak < len(frames):
                yield float(peak)


@dataclass(frozen=True)
class CutAt(Decision):
    """Cuts clips at the series ``cuts`` and keeps parts of a length.

    Args:
        min_frames: of a part that is kept.
        max_frames: of a part that is kept; None is any.

    Raises:
        UserError: they contradict each other.
    """

    min_frames: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < self.min_frames:
            raise UserError(f"max_frames={self.max_frames} is below min_frames={self.min_frames}: nothing would be in.")

    @override
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        places = [0, *(int(cut) for cut in clip.series[SERIES]), clip.frames]
        parts = []
        for first, end in pairwise(places):
            part = clip.part(clip.start + first, clip.start + end, drop=SERIES)
            if part.frames < self.min_frames:
                part = part.rejected(step, f"fewer than {self.min_frames} frames between cuts")
            elif self.max_frames is not None and part.frames > self.max_frames:
                part = part.rejected(step, f"more than {self.max_frames} frames between cuts")
            parts.append(part)
        return parts
