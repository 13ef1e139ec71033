"""Rows of an index on disk, found by their number: an Arrow file of small uncompressed blocks.

Parquet packs a column of many thousand rows together, so that one row costs milliseconds; here it costs one short
read. The file is made from the Parquet index, or together with it, and holds nothing that the index has not.
Nothing is mapped or kept: memory does not grow with the rows read.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from vidlab.data.clip_row import ClipRow, from_values, schema

# Rows that are read together. Fewer make a longer table of blocks (24 bytes each), more make a row dearer.
BLOCK_ROWS = 64


class RowStoreWriter:
    """Write tables of rows, one after the other, as a file for ``RowStore``. Used as a context manager.

    Args:
        path: the file, replaced when it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rest: Any = None

    def __enter__(self) -> "RowStoreWriter":
        import pyarrow as pa

        self._sink = pa.OSFile(str(self.path), "wb")
        self._file = pa.ipc.new_file(self._sink, schema())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left and close the file; more than once does no harm."""
        if self._sink.closed:
            return
        if self._rest is not None and self._rest.num_rows:
            self._file.write_table(self._rest.combine_chunks())
        self._file.close()
        self._sink.close()

    def write(self, table: Any) -> None:
        """Append a pyarrow table of an index; columns that an index may lack are filled up."""
        import pyarrow as pa

        table = _completed(table)
        if self._rest is not None and self._rest.num_rows:
            table = pa.concat_tables([self._rest, table])
        whole = table.num_rows // BLOCK_ROWS * BLOCK_ROWS
        for batch in table.slice(0, whole).combine_chunks().to_batches(max_chunksize=BLOCK_ROWS):
            self._file.write_batch(batch)
        self._rest = table.slice(whole)


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
        OSError, ValueError: the file is not there, or no such file (pyarrow's ArrowInvalid is a ValueError).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = self._open()

    def _open(self) -> Any:
        import pyarrow as pa

        # read at an offset, not through a shared file position or a map: right in forked processes, and no page of
        # the file counts as their memory
        return pa.ipc.open_file(pa.OSFile(str(self.path)), options=pa.ipc.IpcReadOptions(use_threads=False))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._reader = self._open()

    def row(self, number: int) -> ClipRow:
        """Row ``number``, from 0."""
        block, place = divmod(number, BLOCK_ROWS)
        (values,) = self._reader.get_batch(block).slice(place, 1).to_pylist()
        return from_values(values)

    def __iter__(self) -> Iterator[ClipRow]:
        for block in range(self._reader.num_record_batches):
            yield from map(from_values, self._reader.get_batch(block).to_pylist())
