"""What flows through a curation: source videos, and clips of them with all that is known and decided of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha1
from typing import NamedTuple


class Crop(NamedTuple):
    """A part of a frame, in pixels of the upright frame."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class SourceVideo:
    """One video, or a window of one, as it is handed to a curation.

    Args:
        name: unique; what the report calls it.
        file: path of the file that holds its bytes.
        offset: of its first byte; None where the file is the video.
        size: its bytes, where it is a part of a file.
        window: frames [first, end) that count; None is all.
        crop: the part of the frame that counts; None is all.
        captions: texts that came with it; they pass to all its clips.
        split: ``train``, ``val`` or ``test``; empty where it is not decided.
        state: what changes when the file does.
    """

    name: str
    file: str
    offset: int | None = None
    size: int = 0
    window: tuple[int, int] | None = None
    crop: Crop | None = None
    captions: tuple[str, ...] = ()
    split: str = ""
    state: str = ""


@dataclass(frozen=True)
class Clip:
    """Frames [start, end) of a source video, what was measured of them, and whether they are still in.

    Args:
        source: name of the source video.
        start: its first frame, counted from 0 in the source.
        end: the frame after its last.
        fps: frames per second.
        height: pixels of the source's upright frames.
        width: pixels of the source's upright frames.
        crop: the part of the frames that is kept; None is all.
        captions: texts.
        scores: one number per measure.
        series: several numbers per measure, such as one per frame.
        rejected_by: the step that rejected it; empty while it is in.
        reason: why, with the numbers.
    """

    source: str
    start: int
    end: int
    fps: float
    height: int
    width: int
    crop: Crop | None = None
    captions: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rejected_by: str = ""
    reason: str = ""

    @classmethod
    def whole(cls, source: SourceVideo) -> "Clip":
        """The clip that a source begins as, before anything is known of it."""
        return cls(source.name, 0, 0, 0.0, 0, 0, source.crop, source.captions)

    @property
    def id(self) -> str:
        """A name that depends on source, frames and crop alone."""
        what = (self.source, self.start, self.end, tuple(self.crop) if self.crop else None)
        return sha1(repr(what).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def is_in(self) -> bool:
        """Whether no step has rejected it."""
        return not self.rejected_by

    @property
    def frames(self) -> int:
        """How many it has."""
        return self.end - self.start

    @property
    def seconds(self) -> float:
        """Its duration; 0 where the source could not be read."""
        return self.frames / self.fps if self.fps else 0.0

    @property
    def area(self) -> Crop:
        """The part of the frames that is kept."""
        return self.crop or Crop(0, 0, self.height, self.width)

    def rejected(self, step: str, reason: str) -> "Clip":
        """The same clip, out."""
        return replace(self, rejected_by=step, reason=reason)

    def measured(self, found: "Measurement") -> "Clip":
        """The same clip with more known of it."""
        return replace(self, scores={**self.scores, **found.scores}, series={**self.series, **found.series})

    def part(self, start: int, end: int, drop: str = "") -> "Clip":
        """Frames [start, end) of it; ``drop`` names a series that is of no use any more."""
        series = {name: values for name, values in self.series.items() if name != drop}
        return replace(self, start=start, end=end, series=series)


@dataclass(frozen=True)
class Measurement:
    """What a stage measured of one clip, by name."""

    scores: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
