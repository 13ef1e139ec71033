"""Opens tables that others wrote, by their suffix: CSV or Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vidlab.data.names import reason_of, shown
from vidlab.data.tables.csv_table import CsvTable
from vidlab.data.tables.table_rows import BadItem, TableRow
from vidlab.errors import DataError

TABLE_SUFFIXES = (".csv", ".parquet")


class ParquetTable:
    """A Parquet file.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.columns: list[str] = list(file.schema_arrow.names)

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except Exception as error:  # a damaged header lets pyarrow raise errors of many types
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.path} is not a readable Parquet file ({reason_of(error)})")

    def rows(self, needed: Sequence[str]) -> Iterator[TableRow | BadItem]:
        """The ``needed`` columns of all rows; rows whose values cannot be read are bad."""
        number = 0
        with self._open() as file:
            batches = file.iter_batches(4096, columns=list(needed))
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:  # as above, of a damaged page
                    raise self._damaged(error) from error
                if batch is None:
                    return
                for values in _values(batch, needed):
                    place = f"{shown(self.path.name)}, row {number}"
                    yield BadItem(place, values) if isinstance(values, str) else TableRow(place, values)
                    number += 1


def _values(batch: Any, needed: Sequence[str]) -> Iterator[dict[str, Any] | str]:
    """Each row of an Arrow batch, or what is wrong with it."""
    try:
        yield from batch.select(list(needed)).to_pylist()
    except Exception:  # one value of the batch; it is found below
        columns = [batch.column(name) for name in needed]
        for row in range(batch.num_rows):
            try:
                yield {name: column[row].as_py() for name, column in zip(needed, columns, strict=True)}
            except UnicodeDecodeError:
                yield "is not UTF-8 text"
            except Exception as error:  # a date before the year 1, say
                yield f"cannot be read ({reason_of(error)})"


def open_table(path: Path) -> CsvTable | ParquetTable:
    """A table by its suffix, ``.csv`` or ``.parquet``."""
    return CsvTable(path) if path.suffix.lower() == ".csv" else ParquetTable(path)
