"""Opens videos, and slices long ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.stage import Decision, Opening
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import CorruptClipError, UserError


@dataclass(frozen=True)
class Open(Opening):
    """What a file holds: its frames, size and rate, from its packets and its first frame."""

    @override
    def open(self, video: VideoFile) -> Clip:
        info, source = video.probe(), video.source
        start, end = source.window or (0, info.frames)
        if not 0 <= start < end <= info.frames:
            raise CorruptClipError(f"frames {start} to {end} are wanted, and the video has {info.frames}")
        return Clip(source.name, start, end, info.fps, info.height, info.width, source.crop)


@dataclass(frozen=True)
class Slice(Decision):
    """Slices of equal length from the beginning of a video on; the last one holds the rest.

    Open-Sora Plan (arXiv:2412.00131, section 4.2, step 1) slices at 16 seconds, at the key frames nearest; here at the
    exact frame.

    Args:
        seconds: of a slice, rounded to whole frames.

    Raises:
        UserError: it is not above 0.
    """

    seconds: float = 16.0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UserError(f"seconds={self.seconds}: it must be above 0.")

    @override
    def decide(self, clip: Clip, step: str) -> Sequence[Clip]:
        length = max(1, round(self.seconds * clip.fps))
        return [
            replace(clip, start=start, end=min(start + length, clip.end))
            for start in range(clip.start, clip.end, length)
        ]
