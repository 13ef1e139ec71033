"""One annotated clip of a published data set, and the row of an index that it becomes once its video was opened."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vidlab.data.names import RENAME, is_utf8, reason_of
from vidlab.data.storage.clip_row import ClipRow, check_row
from vidlab.data.video import DecodeLimits, ProbedVideo, probe_closely
from vidlab.errors import CorruptClipError


@dataclass(frozen=True)
class Area:
    """A part of the frames in pixels, ends excluded; None is the edge."""

    top: int = 0
    bottom: int | None = None
    left: int = 0
    right: int | None = None


@dataclass(frozen=True)
class Annotation:
    """One clip that an annotation names.

    Args:
        file: relative to the data set's folder.
        captions: one or more texts.
        source: the recording the clip was cut from; "" when the file is its own.
        split: ``train`` or ``val``; "" leaves it to the clip's name.
        scores: what the annotation says of the clip's quality, by name.
        first_frame: of the file.
        num_frames: from there on; None is to the end. Frames that the file does not have are not missed.
        area: of the frames.
    """

    file: str
    captions: tuple[str, ...]
    source: str = ""
    split: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    first_frame: int = 0
    num_frames: int | None = None
    area: Area = Area()

    @property
    def whole(self) -> bool:
        """Whether the clip is all of its file, whatever that has."""
        return self.first_frame == 0 and self.num_frames is None and self.area == Area()


def scores_of(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The scores of a record that are finite numbers, by the names they have here.

    Args:
        record: a row of a table, or an item of a JSON list.
        names: the name here of each name there.
    """
    scores = {}
    for there, here in names.items():
        try:
            score = float(record.get(there) or "nan")
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(score):
            scores[here] = score
    return scores


@dataclass(frozen=True)
class ReadEntry:
    """A usable clip: its row, and remarks on how its video is read."""

    row: ClipRow
    remarks: tuple[str, ...] = ()


def row_or_reason(folder: Path, entry: Annotation, limits: DecodeLimits | None = None) -> ReadEntry | str:
    """The row of a clip whose file is there, or why it cannot be used. Opens the video; lets no error through."""
    if not any(entry.captions):
        return "no caption"
    if not is_utf8(entry.file):
        return f"its name is not UTF-8; {RENAME}"
    try:
        found = read_entry(folder, entry, limits)
        check_row(found.row)
        return found
    except Exception as error:  # whatever a file makes a decoder raise is that clip's failure
        return reason_of(error, entry.file)


def read_entry(folder: Path, entry: Annotation, limits: DecodeLimits | None = None) -> ReadEntry:
    """The row of a clip whose file is there, and remarks.

    Raises:
        CorruptClipError: the video cannot be read, or has not the part that the entry names.
    """
    file = folder / entry.file
    size = file.stat().st_size
    if entry.whole:
        video = probe_closely(file, entry.file, limits)
    else:
        video = _probed(file, entry.file, limits, size, file.stat().st_mtime_ns)
    row = ClipRow(
        key=entry.file,
        shard=entry.file,
        offset=0,
        size=size,
        captions=entry.captions,
        split=entry.split,
        source=entry.source or entry.file,
        factors=None,
        scores=entry.scores,
        **asdict(video.info),
    )
    return ReadEntry(row if entry.whole else _in_area(_in_time(row, entry), entry.area), video.remarks)


@lru_cache(maxsize=16)
def _probed(file: Path, name: str, limits: DecodeLimits | None, size: int, time: int) -> ProbedVideo:
    """Of a file from which many clips are cut, one after the other."""
    return probe_closely(file, name, limits)


def _in_time(row: ClipRow, entry: Annotation) -> ClipRow:
    last = row.frames if entry.num_frames is None else min(row.frames, entry.first_frame + entry.num_frames)
    frames = last - entry.first_frame
    if frames < 1:
        raise CorruptClipError(f"it begins at frame {entry.first_frame}, and the video has {row.frames}")
    if frames == row.frames:
        return row
    key = f"{row.key}#{entry.first_frame}-{last}"
    return replace(row, key=key, first_frame=entry.first_frame, frames=frames, duration=frames / row.fps)


def _in_area(row: ClipRow, area: Area) -> ClipRow:
    bottom = row.height if area.bottom is None else area.bottom
    right = row.width if area.right is None else area.right
    if not (0 <= area.top < bottom <= row.height and 0 <= area.left < right <= row.width):
        raise CorruptClipError(
            f"its crop, rows {area.top} to {bottom} and columns {area.left} to {right}, does not lie in a video of "
            f"{row.height} x {row.width} pixels"
        )
    height, width = bottom - area.top, right - area.left
    if (height, width) == (row.height, row.width):
        return row
    key = f"{row.key}#{height}x{width}+{area.top}+{area.left}"
    return replace(row, key=key, crop=(area.top, area.left), height=height, width=width)
