"""The index of a data set: one Parquet row per clip, naming where its bytes are and what it shows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vidlab.clip import Factors, ObjectFactors
from vidlab.errors import DataError

INDEX_NAME = "index.parquet"
COLUMNS = (
    *("key", "shard", "offset", "size", "frames", "height", "width"),
    *("fps", "duration", "captions", "split", "source", "factors"),
)
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


class ClipIndex:
    """The rows of an index, held as one Arrow table, so that data-loader workers share its memory.

    Args:
        table: a pyarrow table with the columns named in ``COLUMNS``.
        root: the folder that shard names are relative to.
        metadata: what the writer of the data set recorded about it.
        hash: identity of the whole data set, kept by selections.
    """

    def __init__(self, table: Any, root: Path, metadata: Mapping[str, Any], hash: str) -> None:
        self.table = table.combine_chunks()
        self.root = root
        self.metadata = metadata
        self.hash = hash

    @classmethod
    def open(cls, folder: Path | str) -> "ClipIndex":
        """Read ``folder/index.parquet``.

        Raises:
            DataError: when there is none, or it is not an index of clips.
        """
        import pyarrow.parquet as pq

        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise DataError(f"{path} does not exist: {folder} is not a finished data set; make it again")
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); delete it and make the data set again") from error
        header = json.loads((table.schema.metadata or {}).get(b"vidlab", b"null"))
        missing = [column for column in COLUMNS if column not in table.column_names]
        if missing or header is None:
            raise DataError(f"{path} is not an index of clips: it lacks {missing or 'its header'}")
        return cls(table, Path(header["root"] or folder), header["metadata"], header["hash"])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, position: int) -> ClipRow:
        """The clip at ``position``, from 0."""
        if not 0 <= position < len(self):
            raise IndexError(f"clip {position} of {len(self)}")
        values = {name: self.table.column(name)[position].as_py() for name in COLUMNS}
        values["captions"] = tuple(values["captions"])
        values["factors"] = factors_from_json(values["factors"])
        return ClipRow(**values)

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        return list(self.table.column(name).to_pylist())

    def select(self, split: str | None = None, min_frames: int = 0) -> "ClipIndex":
        """The clips of one split with at least ``min_frames`` frames, in the same order."""
        import pyarrow.compute as pc

        keep = pc.greater_equal(self.table.column("frames"), min_frames)
        if split is not None:
            keep = pc.and_(keep, pc.equal(self.table.column("split"), split))
        return ClipIndex(self.table.filter(keep), self.root, self.metadata, self.hash)


def write_index(folder: Path, rows: list[ClipRow], metadata: Mapping[str, Any], root: Path | None = None) -> None:
    """Write ``folder/index.parquet`` in one step: it is either complete or absent.

    Args:
        folder: the data set's folder; it must exist.
        rows: the clips, in order.
        metadata: what to record about the data set; JSON values.
        root: the folder that shard names are relative to, when it is not ``folder`` itself.

    Raises:
        DataError: when two clips have one key.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[str] = set()
    for row in rows:
        if row.key in seen:
            raise DataError(f"two clips have the key {row.key!r}; keys must be unique within a data set")
        seen.add(row.key)
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    columns["captions"] = [list(captions) for captions in columns["captions"]]
    columns["factors"] = [factors_to_json(factors) for factors in columns["factors"]]
    header = {
        "root": None if root is None else str(root.resolve()),
        "metadata": dict(metadata),
        "hash": _hash(columns, metadata),
    }
    table = pa.table(columns, schema=_schema()).replace_schema_metadata({"vidlab": json.dumps(header)})
    unfinished = folder / f"{INDEX_NAME}.tmp"
    pq.write_table(table, unfinished)
    unfinished.replace(folder / INDEX_NAME)


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


def _hash(columns: Mapping[str, list[Any]], metadata: Mapping[str, Any]) -> str:
    """128 bits over every row's hashed columns and the metadata."""
    digest = blake2b(json.dumps(dict(metadata), sort_keys=True).encode(), digest_size=16)
    for row in zip(*(columns[name] for name in HASHED_COLUMNS), strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("key", "shard", "split", "source", "factors"), pa.string()),
        **dict.fromkeys(("offset", "size"), pa.int64()),
        **dict.fromkeys(("frames", "height", "width"), pa.int32()),
        **dict.fromkeys(("fps", "duration"), pa.float64()),
        "captions": pa.list_(pa.string()),
    }
    return pa.schema([(name, kinds[name]) for name in COLUMNS])
