"""How much moves, by optical flow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import UserError

SCORE = "flow"


@dataclass(frozen=True)
class DISFlow(Measure):
    """Mean length of OpenCV's DIS optical flow (Kroeger et al. 2016), in short sides a second, as ``flow``.

    STIV names motion scores and does not define them. Short sides a second compare videos of any size and rate: 0.1 is
    a tenth of the picture's height a second.

    Args:
        short_side: pixels to which frames are reduced.
        seconds: between the two frames of a pair, rounded to whole frames.

    Raises:
        UserError: a setting is out of range.
    """

    short_side: int = 128
    seconds: float = 0.125

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.short_side < 16:
            raise UserError(f"seconds={self.seconds}, short_side={self.short_side}: above 0, and at least 16 pixels.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SCORE,)

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        import cv2

        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        every = max(1, round(self.seconds * clips[0].fps))
        lengths: dict[str, list[float]] = {clip.id: [] for clip in clips}
        last: tuple[str, np.ndarray] | None = None
        for clip, _, frames in video.small_frames(clips, self.short_side, every):
            for frame in frames:
                gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
                if last is not None and last[0] == clip.id:
                    moved = np.linalg.norm(flow.calc(last[1], gray, None), axis=-1).mean()
                    lengths[clip.id].append(float(moved) / min(gray.shape) * clip.fps / every)
                last = clip.id, gray
        return [Measurement({SCORE: float(np.mean(lengths[c.id])) if lengths[c.id] else 0.0}) for c in clips]
