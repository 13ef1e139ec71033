"""Writes an index row by row: memory does not grow with the rows, but for 8 bytes each."""

import json
from array import array
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vidlab.data.remarks import REMARKS
from vidlab.data.storage.clip_row import INDEX_NAME, ClipRow, hashed, schema, to_columns
from vidlab.data.storage.parquet import PAGES, seal
from vidlab.data.storage.row_store import BLOCK_ROWS, RowStoreWriter
from vidlab.errors import DataError
from vidlab.files import aside_of, named_in_errors, remove_leftovers

# Rows of a Parquet row group, which are held while they are gathered.
GROUP_ROWS = 1024 * BLOCK_ROWS


def rows_name(identity: str) -> str:
    """File name of the rows of an index; ``identity`` is that of the very Parquet file."""
    return f"index-{identity}.rows"


class IndexWriter:
    """Write ``folder/index.parquet`` and the file of its rows. Used as a context manager.

    The Parquet file appears last and in one step: an index is either complete or absent. After an exception nothing is
    left.

    Args:
        folder: the data set's folder; it must exist.
        metadata: what to record about the data set; JSON values, part of the hash but for remarks.
        root: the folder that shard names are relative to, when it is not ``folder`` itself.

    Raises:
        DataError: at the end, when two clips have one key.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any], root: Path | None = None) -> None:
        self.folder = folder
        self.metadata = dict(metadata)
        self.root = root
        self._pending: list[ClipRow] = []
        self._keys = array("Q")
        hashed_part = {name: value for name, value in self.metadata.items() if name != REMARKS}
        self._hash = blake2b(json.dumps(hashed_part, sort_keys=True).encode(), digest_size=16)
        self._places = blake2b(digest_size=8)
        self._table, self._rows = aside_of(folder / INDEX_NAME), aside_of(folder / "index.rows")

    def __enter__(self) -> "IndexWriter":
        import pyarrow.parquet as pq

        remove_leftovers(self.folder)
        self._parquet = pq.ParquetWriter(self._table, schema(), **PAGES)
        self._store = RowStoreWriter(self._rows).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with named_in_errors(self.folder / INDEX_NAME):
                header = self._header() if kind is None else None
                self._store.close()
                seal(self._table, self._parquet)
                if header is not None:
                    self._publish(header["rows"])
        except OSError:
            if kind is None:  # otherwise the block that has failed says more
                raise
        finally:
            self._table.unlink(missing_ok=True)
            self._rows.unlink(missing_ok=True)

    def add(self, row: ClipRow) -> None:
        """Append one clip."""
        self._pending.append(row)
        if len(self._pending) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = to_columns(self._pending)
        for values in hashed(columns):
            self._hash.update(json.dumps(values).encode())
        self._places.update(json.dumps([columns["shard"], columns["offset"]]).encode())
        self._keys.extend(map(key_hash, columns["key"]))
        table = pa.table(columns, schema=schema())
        self._parquet.write_table(table, row_group_size=GROUP_ROWS)
        self._store.write(table)
        self._pending = []

    def _header(self) -> dict[str, Any]:
        """Write the last rows and the header."""
        self._flush()
        self._places.update(self._hash.digest())
        header = {
            "root": None if self.root is None else str(self.root.resolve()),
            "metadata": self.metadata,
            "hash": self._hash.hexdigest(),
            "rows": self._places.hexdigest(),
        }
        self._parquet.add_key_value_metadata({"vidlab": json.dumps(header)})
        return header

    def _publish(self, identity: str) -> None:
        self._refuse_double_keys()
        for stale in (*self.folder.glob(rows_name("*")), *self.folder.glob(rows_name("*") + ".arrow")):
            stale.unlink(missing_ok=True)  # of another index, or of an earlier version
        self._rows.replace(self.folder / rows_name(identity))
        self._table.replace(self.folder / INDEX_NAME)

    def _refuse_double_keys(self) -> None:
        """Compare the keys' 64-bit hashes, then the keys where those are equal."""
        import pyarrow.parquet as pq

        suspects = repeated(self._keys)
        if not suspects:
            return
        seen: set[str] = set()
        with pq.ParquetFile(self._table) as file:
            for batch in file.iter_batches(columns=["key"]):
                for key in batch.column(0).to_pylist():
                    if key_hash(key) not in suspects:
                        continue
                    if key in seen:
                        raise DataError(f"two clips have the key {key!r}; keys must be unique within a data set")
                    seen.add(key)


def repeated(keys: "array[int]") -> set[int]:
    """The 64-bit numbers that an array has more than once."""
    hashes = np.sort(np.frombuffer(keys, np.uint64)) if keys else np.empty(0, np.uint64)
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def key_hash(key: str) -> int:
    """64 bits of a key's hash."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def write_index(folder: Path, rows: Iterable[ClipRow], metadata: Mapping[str, Any], root: Path | None = None) -> None:
    """Write an index of ``rows``, taken one by one; see ``IndexWriter``."""
    with IndexWriter(folder, metadata, root) as writer:
        for row in rows:
            writer.add(row)
