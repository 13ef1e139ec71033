"""A source video as stages read it: single frames at full size, or all frames of clips, small, in one pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from vidlab.curation.engine.records import Clip, Crop, SourceVideo
from vidlab.data.storage.shards import MemberFile
from vidlab.data.video import DecodeLimits, VideoInfo, probe, read_frames
from vidlab.data.video.container import opened, video_stream
from vidlab.data.video.frames import FrameConverter
from vidlab.errors import CorruptClipError

CHUNK = 32  # frames that are held together in a pass over a video


@dataclass(frozen=True)
class VideoFile:
    """Reads one source video.

    Args:
        source: where it is.
        limits: what decoding may take.
    """

    source: SourceVideo
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def _file(self) -> Path | RawIOBase:
        path = Path(self.source.file)
        return path if self.source.offset is None else MemberFile(path, self.source.offset, self.source.size)

    def probe(self) -> VideoInfo:
        """Frames, size and rate of the file.

        Raises:
            CorruptClipError: it cannot be read.
        """
        return probe(self._file(), self.source.name, self.limits)

    def frames(self, clip: Clip, indices: Sequence[int]) -> np.ndarray:
        """Frames of a clip as uint8 (T, H, W, 3), cropped as it is.

        Args:
            clip: of this video.
            indices: counted from the clip's first frame.

        Raises:
            CorruptClipError: they cannot be decoded.
        """
        wanted = [clip.start + index for index in indices]
        frames = read_frames(self._file(), wanted, self.source.name, self.limits)
        return cropped(frames, clip.crop)

    def small_frames(
        self, clips: Sequence[Clip], short_side: int, every: int = 1
    ) -> Iterator[tuple[Clip, int, np.ndarray]]:
        """All frames of clips, reduced, in one pass over the file: (clip, first index, uint8 (t, h, w, 3)).

        Frames come in chunks of at most 32, so that memory does not grow with the video.

        Args:
            clips: of this video, apart from each other, in order of time.
            short_side: pixels that the shorter side of the kept area is reduced to; smaller ones stay.
            every: 2 takes every second frame of a clip, beginning with its first.

        Raises:
            CorruptClipError: a frame cannot be decoded.
        """
        waiting, first, number = list(clips), 0, -1
        chunk: list[np.ndarray] = []
        if not waiting:
            return
        with self._stream() as (frames, converter):
            for number, frame in frames:
                while number >= waiting[0].end:  # its last frame was not one of every
                    if chunk:
                        yield waiting[0], first, np.stack(chunk)
                    chunk = []
                    if len(waiting) == 1:
                        return
                    waiting.pop(0)
                index = number - waiting[0].start
                if index < 0 or index % every:
                    continue
                first = index if not chunk else first
                chunk.append(_reduced(converter, frame, waiting[0].crop, short_side))
                if len(chunk) == CHUNK:
                    yield waiting[0], first, np.stack(chunk)
                    chunk = []
            if number + 1 < waiting[-1].end:
                raise CorruptClipError(f"{self.source.name}: frame {number + 1} is wanted but the video ends before it")
            if chunk:
                yield waiting[0], first, np.stack(chunk)

    @contextmanager
    def _stream(self) -> Iterator[tuple[Iterator[tuple[int, Any]], FrameConverter]]:
        """All decoded frames by number, and what turns them into RGB."""
        with (
            opened(self._file(), self.source.name) as file,
            video_stream(file, self.limits) as (container, stream),
        ):
            yield enumerate(container.decode(stream)), FrameConverter(stream, self.limits)


def cropped(frames: np.ndarray, crop: Crop | None) -> np.ndarray:
    """The part of frames (T, H, W, 3) that is kept."""
    if crop is None:
        return frames
    top, left, height, width = crop
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def spread(length: int, count: int) -> list[int]:
    """``count`` frame numbers evenly over ``length`` frames, each in the middle of its part."""
    return [int((2 * at + 1) * length / (2 * count)) for at in range(count)]


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with a shorter side of at most ``short_side`` pixels."""
    scale = min(1.0, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _reduced(converter: FrameConverter, frame: Any, crop: Crop | None, short_side: int) -> np.ndarray:
    """A decoded frame, cropped and reduced: as uint8 (h, w, 3), in one step of the decoder's own scaler."""
    height, width = converter.shape(frame)
    if crop is None:
        return converter.reduced(frame, *reduced_size(height, width, short_side))
    import cv2

    (part,) = cropped(converter.rgb(frame)[None], crop)
    height, width = part.shape[:2]
    size = reduced_size(height, width, short_side)
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA) if size != part.shape[:2] else part
