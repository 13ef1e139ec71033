"""One row of an index, and its form as an Arrow table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vidlab.clip import Factors, ObjectFactors

INDEX_NAME = "index.parquet"
COLUMNS = (
    *("key", "shard", "offset", "size", "frames", "height", "width"),
    *("fps", "duration", "captions", "split", "source", "factors"),
)
# Columns that an index may lack: those of older ones do.
OPTIONAL_COLUMNS = ("scores",)
# Where the bytes lie is left out of the hash: packing the same clips differently changes nothing in training.
HASHED_COLUMNS = tuple(column for column in COLUMNS if column not in ("shard", "offset"))


@dataclass(frozen=True)
class ClipRow:
    """One clip of an index.

    Args:
        key: unique name of the clip.
        shard: file that holds the clip's bytes, relative to ``ClipIndex.root``.
        offset: first byte of the clip in the shard.
        size: bytes of the clip.
        frames: frames of the video.
        height: pixels.
        width: pixels.
        fps: frames per second.
        duration: seconds.
        captions: one or more texts.
        split: ``train``, ``val`` or ``test``.
        source: the recording a clip was cut from; empty when the clip is its own.
        factors: true factors of a rendered clip, otherwise None.
        scores: what others measured of the clip (``aesthetic``, ``motion``, ``matching``, ...), by name, in the units
            of whoever measured it.
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


def schema() -> Any:
    """The Arrow schema of an index."""
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("key", "shard", "split", "source", "factors"), pa.string()),
        **dict.fromkeys(("offset", "size"), pa.int64()),
        **dict.fromkeys(("frames", "height", "width"), pa.int32()),
        **dict.fromkeys(("fps", "duration"), pa.float64()),
        "captions": pa.list_(pa.string()),
        "scores": pa.map_(pa.string(), pa.float64()),
    }
    return pa.schema([(name, kinds[name]) for name in (*COLUMNS, *OPTIONAL_COLUMNS)])


def to_columns(rows: Sequence[ClipRow]) -> dict[str, list[Any]]:
    """The values of the rows, column by column, as Arrow takes them."""
    columns = {name: [getattr(row, name) for row in rows] for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
    columns["captions"] = [list(captions) for captions in columns["captions"]]
    columns["factors"] = [factors_to_json(factors) for factors in columns["factors"]]
    columns["scores"] = [sorted(scores.items()) for scores in columns["scores"]]
    return columns


def from_values(values: Mapping[str, Any]) -> ClipRow:
    """A row from the values of an Arrow table."""
    changed = {
        "captions": tuple(values["captions"]),
        "factors": factors_from_json(values["factors"]),
        "scores": dict(values.get("scores") or ()),
    }
    return ClipRow(**{**values, **changed})


def factors_to_json(factors: Factors | None) -> str | None:
    """Factors as the JSON text an index stores."""
    return None if factors is None else json.dumps(asdict(factors), sort_keys=True, separators=(",", ":"))


def factors_from_json(text: str | None) -> Factors | None:
    """Factors from the JSON text of an index."""
    if text is None:
        return None
    values = json.loads(text)
    objects = tuple(ObjectFactors(**{k: _as_tuple(v) for k, v in one.items()}) for one in values.pop("objects"))
    return Factors(objects=objects, **{name: _as_tuple(value) for name, value in values.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
