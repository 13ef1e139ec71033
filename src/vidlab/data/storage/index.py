"""The index of a data set: one Parquet row per clip, naming where its bytes are and what it shows.

Opening it reads its header alone. Columns of numbers are read when they are asked for, single rows one by one from a
file of rows beside the Parquet file (``row_store``), so captions are never held in memory.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vidlab.assets import cache_folder
from vidlab.data.names import reason_of, shown
from vidlab.data.storage.clip_row import COLUMNS, INDEX_NAME, ClipRow, check_row, schema
from vidlab.data.storage.index_checks import IndexHeader, as_written, check_numbers, check_size
from vidlab.data.storage.index_writer import GROUP_ROWS, IndexWriter, rows_name, write_index
from vidlab.data.storage.parquet import open_parquet
from vidlab.data.storage.row_store import RowStore, RowStoreWriter
from vidlab.digests import DamagedError
from vidlab.errors import CorruptClipError, DataError, UserError
from vidlab.files import remove_leftovers, written_aside

__all__ = ["COLUMNS", "INDEX_NAME", "ClipIndex", "ClipRow", "IndexWriter", "write_index"]

log = logging.getLogger(__name__)


class ClipIndex:
    """The clips of an index, or some of them.

    It holds 4 bytes per selected clip, nothing where all are; it may be sent to worker processes.

    Args:
        path: the Parquet file.
        rows: the same clips, found by number.
        root: the folder that shard names are relative to.
        metadata: what the writer of the data set recorded about it.
        hash: identity of the whole data set, kept by selections.
        clips: rows of the Parquet file.
        positions: int32 (selected,): the rows selected, in order; None is all.
    """

    def __init__(
        self,
        path: Path,
        rows: RowStore,
        root: Path,
        metadata: Mapping[str, Any],
        hash: str,
        clips: int,
        positions: np.ndarray | None = None,
    ) -> None:
        self.path = path
        self.rows = rows
        self.root = root
        self.metadata = metadata
        self.hash = hash
        self.clips = clips
        self.positions = positions

    @classmethod
    def open(cls, folder: Path | str) -> "ClipIndex":
        """Open ``folder/index.parquet``. Its hash is the one that was stored when it was written.

        An index written elsewhere or by an older version has no file of rows: that is made once, in the folder or,
        where that cannot be written to, in the vidlab cache.

        Raises:
            DataError: when there is none, or it is not an index of clips.
        """
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise DataError(f"{path} does not exist: {folder} is not a finished data set; make it again")
        with _parquet(path) as file:
            header = (file.metadata.metadata or {}).get(b"vidlab")
            present, clips = file.schema_arrow.names, file.metadata.num_rows
            missing = [column for column in COLUMNS if column not in present]
            if missing or header is None:
                raise DataError(f"{path} is not an index of clips: it lacks {missing or 'its header'}")
            found = IndexHeader.read(header)
            check_size(clips, path.stat().st_size)
        rows = _row_store(path, found.rows)
        if rows.rows != clips:
            raise DataError(f"{rows.path} has {rows.rows} clips, {path} {clips}; delete it, and it is made again")
        return cls(path, rows, Path(found.root or folder), found.metadata, found.hash, clips)

    def __len__(self) -> int:
        return self.clips if self.positions is None else len(self.positions)

    def row(self, position: int) -> ClipRow:
        """The clip at ``position``, from 0; read from disk.

        Raises:
            CorruptClipError: the row holds what no clip can have.
            DataError: the file of rows is damaged.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"clip {position} of {len(self)}")
        number = position if self.positions is None else int(self.positions[position])
        try:
            row = self.rows.row(number)
            check_row(row)
        except CorruptClipError as error:
            raise CorruptClipError(f"{self.path}, clip {number}: {error}") from None
        except DataError:
            raise
        except Exception as error:  # whatever the values of an untrusted row make of it
            raise CorruptClipError(f"{self.path}, clip {number}: {reason_of(error)}") from error
        return row

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        return [value for _, values, chosen in self._parts(name) for value in values.take(chosen).to_pylist()]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, int or float (clips,); read from disk."""
        values = np.empty(len(self), str(schema().field(name).type).replace("double", "float64"))
        for start, part, chosen in self._parts(name):
            # pyarrow's to_numpy imports pandas first
            values[start : start + len(chosen)] = np.from_dlpack(part)[chosen]
        with _told_of(self.path):
            check_numbers(values, name, self.positions)
        return values

    def texts(self, name: str) -> Iterator[tuple[int, np.ndarray, list[str]]]:
        """A column of texts in parts: the position of a part's first clip, int codes (clips,), and the text of each."""
        for start, part, chosen in self._parts(name, read_dictionary=[name]):
            part = part if hasattr(part, "indices") else part.dictionary_encode()
            codes, texts = np.from_dlpack(part.indices)[chosen], part.dictionary.to_pylist()
            with _told_of(self.path):
                if len(codes) and not 0 <= codes.min() <= codes.max() < len(texts):
                    raise DamagedError(f"the column {name} is damaged")
            yield start, codes, texts

    def shard_numbers(self) -> np.ndarray:
        """For each clip the number of times the shard has changed up to it, int32 (clips,)."""
        changed, before = np.zeros(len(self), np.int32), None
        for start, codes, names in self.texts("shard"):
            if len(codes):
                changed[start] = before not in (None, names[codes[0]])
                changed[start + 1 : start + len(codes)] = np.diff(codes) != 0
                before = names[codes[-1]]
        return np.cumsum(changed, dtype=np.int32, out=changed)

    def splits(self) -> dict[str, int]:
        """How many clips each split has, by its name in the index."""
        found: dict[str, int] = {}
        for _, codes, names in self.texts("split"):
            for name, clips in zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True):
                found[name] = found.get(name, 0) + clips
        return found

    def select(self, split: str | None = None, min_frames: int = 0) -> "ClipIndex":
        """The clips of one split with at least ``min_frames`` frames, in the same order."""
        keep = np.ones(len(self), bool)
        if min_frames > 0:
            keep = self.numbers("frames") >= min_frames
        if split is not None:
            for start, codes, names in self.texts("split"):
                keep[start : start + len(codes)] &= np.array([name == split for name in names], bool)[codes]
        if keep.all():
            return self
        positions = _positions(keep) if self.positions is None else self.positions[keep]
        return ClipIndex(self.path, self.rows, self.root, self.metadata, self.hash, self.clips, positions)

    def _parts(self, name: str, **options: Any) -> Iterator[tuple[int, Any, np.ndarray]]:
        """A column in parts: the position of a part's first clip, a pyarrow array, and the selected places in it."""
        first = 0
        with _parquet(self.path, **options) as file:
            if (clips := file.metadata.num_rows) != self.clips:
                raise DataError(f"{self.path} has {clips} clips and had {self.clips}: it was replaced during the run")
            for batch in file.iter_batches(GROUP_ROWS, columns=[name]):
                start, end = first, first + len(batch)
                chosen: np.ndarray = np.arange(len(batch))
                if self.positions is not None:
                    start, end = np.searchsorted(self.positions, np.array([start, end], np.int32)).tolist()
                    chosen = self.positions[start:end] - np.int32(first)
                yield start, as_written(batch.column(0), name, first), chosen
                first += len(batch)
            if first != self.clips:
                raise DataError(f"{self.path} has {first} of {self.clips} clips in {name}; make the data set again")


def _positions(keep: np.ndarray) -> np.ndarray:
    """``flatnonzero`` as int32, in parts: numpy's own takes 8 bytes per clip."""
    found = np.empty(np.count_nonzero(keep), np.int32)
    end = 0
    for start in range(0, len(keep), GROUP_ROWS):
        part = np.flatnonzero(keep[start : start + GROUP_ROWS])
        found[end : end + len(part)] = part + start
        end += len(part)
    return found


@contextmanager
def _parquet(path: Path, **options: Any) -> Iterator[Any]:
    with _told_of(path), open_parquet(path, **options) as file:
        yield file


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Say of which index an error is, whatever its reader raised."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join((str(error) if isinstance(error, OSError | ValueError) else reason_of(error)).split())
        raise DataError(f"{path} cannot be read ({shown(reason)}); delete it and make the data set again") from error


def _row_store(path: Path, identity: str | None) -> RowStore:
    """The file of rows of the Parquet file; made when it is not there."""
    if identity is None:
        state = path.stat()
        identity = blake2b(os.fsencode(f"{path} {state.st_size} {state.st_mtime_ns}"), digest_size=8).hexdigest()
    places = [path.parent / rows_name(identity), cache_folder() / "rows" / rows_name(identity)]
    for place in places:
        if place.is_file():
            return _opened(place)
    place = places[0] if os.access(path.parent, os.W_OK) else places[1]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.is_file():
                log.info("%s has no file of rows: making %s", path, place)
                _make_rows(path, place)
    except OSError as error:
        raise DataError(f"{place} cannot be written ({error.strerror or error})") from error
    return _opened(place)


def _opened(place: Path) -> RowStore:
    try:
        return RowStore(place)
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({error}); delete it, and it is made again") from error


def _make_rows(path: Path, place: Path) -> None:
    remove_leftovers(place.parent)
    with written_aside(place) as unfinished, RowStoreWriter(unfinished) as store:
        for table in _tables(path):
            # what cannot be stored is a fault of the index, not of the place where its rows go
            with _told_of(path):
                store.write(table)


def _tables(path: Path) -> Iterator[Any]:
    """All rows in parts."""
    import pyarrow as pa

    with _parquet(path) as file:
        yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(GROUP_ROWS))
