"""Rows of an index on disk, found by their number: a file of small Arrow record batches, each with a checksum.

Parquet packs a column of many thousand rows together, so that one row costs milliseconds; here it costs one short
read. The file is made from the Parquet index, or together with it, and holds nothing that the index has not.
Nothing is mapped or kept: memory does not grow with the rows read.

The blocks come first, one after the other. A table follows: where each begins and the last ends (int64), the CRC-32 of
each (uint32), and the Arrow schema; then ``TAIL``. Arrow sees no byte before it has been compared: it trusts lengths
and offsets that it reads, and wrong ones end the process.
"""

import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np

from vidlab.data.storage.clip_row import ClipRow, from_values, schema
from vidlab.errors import DataError

# Rows that are read together. Fewer make a longer table of blocks (12 bytes each), more make a row dearer.
BLOCK_ROWS = 64
TAIL = struct.Struct("<QQQI8s")  # rows, blocks, bytes of the schema, CRC-32 of the table, magic
MAGIC = b"VLROWS01"


class RowStoreWriter:
    """Write tables of rows, one after the other, as a file for ``RowStore``. Used as a context manager.

    Args:
        path: the file, replaced when it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rest: Any = None
        self._rows, self._ends, self._sums = 0, [0], list[int]()

    def __enter__(self) -> "RowStoreWriter":
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left and close the file; more than once does no harm."""
        if self._file.closed:
            return
        with self._file:
            if self._rest is not None and self._rest.num_rows:
                self._append(self._rest.combine_chunks().to_batches())
            fields = schema().serialize().to_pybytes()
            table = np.array(self._ends, "<i8").tobytes() + np.array(self._sums, "<u4").tobytes() + fields
            self._file.write(table)
            self._file.write(TAIL.pack(self._rows, len(self._sums), len(fields), crc32(table), MAGIC))

    def write(self, table: Any) -> None:
        """Append a pyarrow table of an index; columns that an index may lack are filled up."""
        import pyarrow as pa

        table = _completed(table)
        if self._rest is not None and self._rest.num_rows:
            table = pa.concat_tables([self._rest, table])
        whole = table.num_rows // BLOCK_ROWS * BLOCK_ROWS
        self._append(table.slice(0, whole).combine_chunks().to_batches(max_chunksize=BLOCK_ROWS))
        self._rest = table.slice(whole)

    def _append(self, batches: list[Any]) -> None:
        for batch in batches:
            block = batch.serialize()
            self._file.write(block)
            self._rows += batch.num_rows
            self._ends.append(self._ends[-1] + block.size)
            self._sums.append(crc32(block))


def _completed(table: Any) -> Any:
    import pyarrow as pa

    for field in schema():
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema().names).cast(schema())


class RowStore:
    """Read rows by number. It may be sent to other processes, and shared with forked ones.

    Args:
        path: a file of ``RowStoreWriter``.

    Raises:
        OSError: the file is not there.
        DataError: it is damaged, or no such file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        size = os.fstat(self._handle).st_size
        tail = self._read(size - TAIL.size, TAIL.size)
        self.rows, blocks, fields, total, magic = TAIL.unpack(tail) if len(tail) == TAIL.size else (0, 0, 0, 0, b"")
        length = 8 * (blocks + 1) + 4 * blocks + fields
        table = self._read(size - TAIL.size - length, length) if length < size else b""
        if magic != MAGIC or not table or crc32(table) != total or -(-self.rows // BLOCK_ROWS) != blocks:
            raise self._damaged("it is cut off, damaged or of another kind")
        self._ends = np.frombuffer(table, "<i8", blocks + 1)
        self._sums = np.frombuffer(table, "<u4", blocks, 8 * (blocks + 1))
        self._schema = pa.ipc.read_schema(pa.py_buffer(table[length - fields :]))
        self._names = list(enumerate(self._schema.names))
        self._verified = bytearray(blocks)  # which blocks have been compared by this process: one byte each

    def _read(self, offset: int, size: int) -> bytes:
        # read at an offset, not through a shared file position or a map: right in forked processes, and no page of
        # the file counts as their memory
        return os.pread(self._handle, size, offset) if offset >= 0 else b""

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def row(self, number: int) -> ClipRow:
        """Row ``number``, from 0.

        Raises:
            DataError: the file is damaged there.
        """
        block, place = divmod(number, BLOCK_ROWS)
        one = self._block(block).slice(place, 1)
        # column by column: RecordBatch.to_pylist takes half as long again
        return from_values({name: one.column(column).to_pylist()[0] for column, name in self._names})

    def __iter__(self) -> Iterator[ClipRow]:
        for block in range(len(self._sums)):
            yield from map(from_values, self._block(block).to_pylist())

    def _block(self, number: int) -> Any:
        import pyarrow as pa

        start, end = int(self._ends[number]), int(self._ends[number + 1])
        content = self._read(start, end - start)
        if self._verified[number] and len(content) == end - start:
            return pa.ipc.read_record_batch(pa.py_buffer(content), self._schema)
        if crc32(content) != self._sums[number]:
            raise self._damaged(f"rows {number * BLOCK_ROWS} and on are not those that were written")
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), self._schema)
        batch.validate(full=True)  # an untrusted file may have right checksums and wrong offsets
        self._verified[number] = True
        return batch

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path} cannot be read ({reason}); delete it, and it is made again")
