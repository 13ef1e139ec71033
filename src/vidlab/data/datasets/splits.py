"""Training and held-out split by hashed names; indexes of clips gathered one by one."""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from vidlab.data.storage.clip_row import ClipRow, schema, to_columns
from vidlab.data.storage.index_writer import GROUP_ROWS, key_hash, repeated, write_index
from vidlab.data.storage.row_store import RowStore, RowStoreWriter
from vidlab.files import aside_of
from vidlab.randomness import seed_of


class HeldOutByName:
    """Hold out the recordings whose name hashes below ``val_fraction``; at least one, and never all.

    All clips of one recording go to one side, unless there is only one recording: then each clip goes by its key. So
    adding clips moves none from one side to the other, save for the last sentence of the first paragraph.
    All clips must be shown to ``see`` before the first is asked for; a few numbers are kept of them.

    Args:
        val_fraction: between 0 and 1.
    """

    def __init__(self, val_fraction: float) -> None:
        self.val_fraction = val_fraction
        self._sources, self._keys = _Range(), _Range()

    def see(self, row: ClipRow) -> None:
        """Count a clip."""
        self._sources.add(row.source)
        self._keys.add(row.key)

    def split(self, row: ClipRow) -> str:
        """``train`` or ``val``."""
        several = self._sources.least != self._sources.most
        name, among = (row.source, self._sources) if several else (row.key, self._keys)
        place = _place(name)
        held_out = place != among.most and (place == among.least or place < self.val_fraction)
        return "val" if held_out else "train"


class _Range:
    """The least and the greatest place of the names seen."""

    def __init__(self) -> None:
        self.least, self.most = 1.0, 0.0

    def add(self, name: str) -> None:
        place = _place(name)
        self.least, self.most = min(self.least, place), max(self.most, place)


def _place(name: str) -> float:
    return float(seed_of("val", name)) / 2**63


class GatheredRows:
    """Clips gathered one by one on disk, then written as an index with their splits. Used as a context manager.

    Clips whose ``split`` is not empty keep it, if that is so of all.

    Args:
        folder: of the index; it must exist. A temporary file lies there meanwhile.
        val_fraction: see ``HeldOutByName``.
    """

    def __init__(self, folder: Path, val_fraction: float) -> None:
        self.folder = folder
        self.rule = HeldOutByName(val_fraction)
        self.count = 0
        self.first: ClipRow | None = None
        self._own_splits = True
        self._keys = array("Q")
        self._path = aside_of(folder / "gathered.rows")
        self._pending: list[ClipRow] = []

    def __enter__(self) -> "GatheredRows":
        self._store = RowStoreWriter(self._path).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()
        self._path.unlink(missing_ok=True)

    def add(self, row: ClipRow) -> None:
        """Take one clip; its ``split`` may be empty."""
        self.first = self.first or row
        self.count += 1
        self._keys.append(key_hash(row.key))
        self.rule.see(row)
        self._own_splits = self._own_splits and bool(row.split)
        self._pending.append(row)
        if len(self._pending) == GROUP_ROWS:
            self._flush()

    @cached_property
    def repeats(self) -> dict[str, list[ClipRow]]:
        """The clips of each key that several have, in their order; nothing can be added after."""
        self._flush()
        self._store.close()
        suspects = repeated(self._keys)
        found: dict[str, list[ClipRow]] = {}
        for row in RowStore(self._path) if suspects else ():
            if key_hash(row.key) in suspects:
                found.setdefault(row.key, []).append(row)
        return {key: rows for key, rows in found.items() if len(rows) > 1}

    def write_index(self, metadata: Mapping[str, Any], root: Path) -> None:
        """Write the index of all clips taken, in their order; nothing can be added after.

        Clips with one key are written as the first of them, with the captions of all.
        """
        self._flush()
        self._store.close()
        write_index(self.folder, self._with_splits(), metadata, root)

    def _with_splits(self) -> Iterator[ClipRow]:
        written = set()
        for row in RowStore(self._path):
            if row.key in written:
                continue
            if row.key in self.repeats:
                written.add(row.key)
                captions = [caption for one in self.repeats[row.key] for caption in one.captions]
                row = replace(row, captions=tuple(dict.fromkeys(captions)))
            yield row if self._own_splits else replace(row, split=self.rule.split(row))

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        self._store.write(pa.table(to_columns(self._pending), schema=schema()))
        self._pending = []
