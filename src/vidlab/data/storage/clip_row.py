"""One row of an index, and its form as an Arrow table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vidlab.data.names import is_utf8, shown
from vidlab.errors import CorruptClipError
from vidlab.factors import Factors, ObjectFactors

INDEX_NAME = "index.parquet"
SPLITS = ("train", "val", "test")
NO_SPLIT = "which is none of train, val and test"
COLUMNS = (
    *("key", "shard", "offset", "size", "frames", "height", "width"),
    *("fps", "duration", "captions", "split", "source", "factors"),
)
# Columns that an index may lack: those of older ones do.
OPTIONAL_COLUMNS = ("scores", "crc", "first_frame", "crop")
# Where the bytes lie is left out of the hash: packing the same clips differently changes nothing in training.
HASHED_COLUMNS = tuple(column for column in COLUMNS if column not in ("shard", "offset"))
# The least and the greatest whole numbers that a clip can have.
BOUNDS = {
    **dict.fromkeys(("offset", "size"), (0, 2**63 - 1)),
    **dict.fromkeys(("frames", "height", "width"), (1, 2**31 - 1)),
}

WHOLE = {"first_frame": None, "crop": None}


@dataclass(frozen=True)
class ClipRow:
    """One clip of an index.

    Args:
        key: unique name of the clip.
        shard: file that holds the clip's bytes, relative to ``ClipIndex.root``.
        offset: first byte of the clip in the shard.
        size: bytes of the clip.
        frames: frames of the clip.
        height: pixels of the clip.
        width: pixels of the clip.
        fps: frames per second.
        duration: seconds.
        captions: one or more texts.
        split: ``train``, ``val`` or ``test``.
        source: the recording a clip was cut from; empty when the clip is its own.
        factors: true factors of a rendered clip, otherwise None.
        scores: what others measured of the clip (``aesthetic``, ``motion``, ``matching``, ...), by name, in the units
            of whoever measured it.
        crc: CRC-32 of the clip's bytes; None where whoever made the index did not write them.
        first_frame: of the file, where the clip is ``frames`` frames of it; None where it is the whole file.
        crop: (top, left) in pixels of the file's upright frames, where the clip is a part of their area; None where it
            is all of it.
    """

    key: str
    shard: str
    offset: int
    size: int
    frames: int
    height: int
    width: int
    fps: float
    duration: float
    captions: tuple[str, ...]
    split: str
    source: str
    factors: Factors | None
    scores: Mapping[str, float] = field(default_factory=dict)
    crc: int | None = None
    first_frame: int | None = None
    crop: tuple[int, int] | None = None

    def frames_in_file(self, wanted: range | None = None) -> range | None:
        """Numbers of the clip's frames, or of those ``wanted``, in its file; None: all that the file has."""
        if self.first_frame is None:
            return wanted
        wanted = range(self.frames) if wanted is None else wanted
        return range(self.first_frame + wanted.start, self.first_frame + wanted.stop, wanted.step)

    def area(self, frames: np.ndarray) -> np.ndarray:
        """The clip's part (T, height, width, 3) of frames of its file, uint8 (T, H, W, 3).

        Raises:
            CorruptClipError: they are not of the size on which the clip's shape was chosen.
        """
        rows, columns = frames.shape[1:3]
        if self.crop is not None:
            top, left = self.crop
            frames = np.ascontiguousarray(frames[:, top : top + self.height, left : left + self.width])
        if frames.shape[1:3] != (self.height, self.width):
            part = "" if self.crop is None else f" at {self.crop[0]}, {self.crop[1]}"
            raise CorruptClipError(
                f"the index says {self.height} x {self.width} pixels{part}, the video has {rows} x {columns}"
            )
        return frames


def schema() -> Any:
    """The Arrow schema of an index."""
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("key", "shard", "split", "source", "factors"), pa.string()),
        **dict.fromkeys(("offset", "size", "crc"), pa.int64()),
        **dict.fromkeys(("frames", "height", "width", "first_frame"), pa.int32()),
        **dict.fromkeys(("fps", "duration"), pa.float64()),
        "captions": pa.list_(pa.string()),
        "scores": pa.map_(pa.string(), pa.float64()),
        "crop": pa.list_(pa.int32()),
    }
    return pa.schema([(name, kinds[name]) for name in (*COLUMNS, *OPTIONAL_COLUMNS)])


def to_columns(rows: Sequence[ClipRow]) -> dict[str, list[Any]]:
    """The values of the rows, column by column, as Arrow takes them."""
    columns = {name: [getattr(row, name) for row in rows] for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
    columns["captions"] = [list(captions) for captions in columns["captions"]]
    columns["factors"] = [factors_to_json(factors) for factors in columns["factors"]]
    columns["scores"] = [sorted(scores.items()) for scores in columns["scores"]]
    return columns


def hashed(columns: Mapping[str, Sequence[Any]]) -> Iterator[list[Any]]:
    """What of each row changes training; a row without scores, that is a whole file, as if there were no such columns.

    Args:
        columns: of ``to_columns``.
    """
    names = (*HASHED_COLUMNS, "scores", "first_frame", "crop")
    for *values, scores, first_frame, crop in zip(*(columns[name] for name in names), strict=True):
        part = {"first_frame": first_frame, "crop": crop}
        yield values + [extra for extra in (scores, part if part != WHOLE else None) if extra]


def from_values(values: Mapping[str, Any]) -> ClipRow:
    """A row from the values of an Arrow table."""
    changed = dict(values)
    changed["captions"] = tuple(values["captions"])
    changed["factors"] = factors_from_json(values["factors"])
    changed["scores"] = dict(values.get("scores") or ())
    changed["crop"] = None if (crop := values.get("crop")) is None else tuple(crop)
    return ClipRow(**changed)


def check_row(row: ClipRow) -> None:
    """Refuse a row that no reader can use or no index can hold.

    Raises:
        CorruptClipError: naming the value at fault.
    """
    values = vars(row)  # this is asked of every clip that is read
    for name, (least, most) in BOUNDS.items():
        value = values[name]
        if not isinstance(value, int) or not least <= value <= most:
            raise CorruptClipError(f"{name}={value!r:.40} is not between {least} and {most}")
    for name in ("fps", "duration"):
        value = values[name]
        if not isinstance(value, (float, int)) or not 0 < value < math.inf:
            raise CorruptClipError(f"{name}={value!r:.40} is not a positive number")
    for name, part, length in (("first_frame", row.first_frame, 1), ("crop", row.crop, 2)):
        if part is not None and not _is_place(part if length == 2 else (part,), length):
            raise CorruptClipError(f"{name}={part!r:.40} is no place in a video")
    if not row.captions:
        raise CorruptClipError("it has no caption")
    for name, text in _texts(row):
        if not isinstance(text, str) or not is_utf8(text):
            raise CorruptClipError(f"its {name} is not valid Unicode text: {shown(text):.60}")
    if leaves_folder(row.shard):
        raise CorruptClipError(f"its shard {shown(row.shard):.200} is not below the data set's folder")


def _is_place(part: Any, length: int) -> bool:
    return len(part) == length and all(isinstance(number, int) and 0 <= number < 2**31 for number in part)


def _texts(row: ClipRow) -> Iterator[tuple[str, Any]]:
    for name in ("key", "shard", "split", "source"):
        yield name, getattr(row, name)
    for caption in row.captions:
        yield "caption", caption
    for score in row.scores:
        yield "score's name", score


def leaves_folder(path: str) -> bool:
    """Whether a relative path is absolute after all, goes up, or is none."""
    return not path or path.startswith("/") or "\0" in path or ".." in path.split("/")


def factors_to_json(factors: Factors | None) -> str | None:
    """Factors as the JSON text an index stores."""
    return None if factors is None else json.dumps(factors, sort_keys=True, separators=(",", ":"), default=vars)


def factors_from_json(text: str | None) -> Factors | None:
    """Factors from the JSON text of an index."""
    if text is None:
        return None
    values = json.loads(text.replace("colour", "color"))  # the names of earlier indices
    objects = tuple(ObjectFactors(**{k: _as_tuple(v) for k, v in one.items()}) for one in values.pop("objects"))
    return Factors(objects=objects, **{name: _as_tuple(value) for name, value in values.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
