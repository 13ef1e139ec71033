"""Validation of an index, since anybody may have made it: its header, its types and its numbers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlab.data.names import shown
from vidlab.data.storage.clip_row import BOUNDS, NO_SPLIT, OPTIONAL_COLUMNS, SPLITS, schema

# An index has a key of its own for every clip, so that more rows than this do not fit into a byte.
ROWS_PER_BYTE = 64
# Columns in which a clip may have nothing.
MAY_LACK = ("factors", *OPTIONAL_COLUMNS)
IDENTITY = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class IndexHeader:
    """The header of an index: what its writer said of it.

    Args:
        root: the folder that shard names are relative to; None is the index's own.
        metadata: about the data set; ``rejected`` are clips left out, and why.
        hash: identity of the clips.
        rows: identity of the Parquet file; None in those of old versions.
    """

    root: str | None
    metadata: Mapping[str, Any]
    hash: str
    rows: str | None

    @classmethod
    def read(cls, text: bytes) -> "IndexHeader":
        """The header in the JSON text of a Parquet file's metadata.

        Raises:
            ValueError: it is none; says what is wrong.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("its header is not JSON") from None
        if not isinstance(content, dict):
            raise ValueError("its header is no JSON object")
        root, rows = content.get("root"), content.get("rows")
        metadata, identity = content.get("metadata"), content.get("hash")
        if not (root is None or (isinstance(root, str) and root and "\0" not in root)):
            raise ValueError(f"its header says root={root!r:.60}")
        if not (rows is None or (isinstance(rows, str) and IDENTITY.fullmatch(rows))):
            raise ValueError(f"its header says rows={rows!r:.60}")
        if not isinstance(identity, str) or not isinstance(metadata, dict):
            raise ValueError("its header lacks a hash or metadata")
        rejected = metadata.get("rejected", {})
        if not isinstance(rejected, dict) or not all(isinstance(reason, str) for reason in rejected.values()):
            raise ValueError("its header says of rejected clips what no reasons are")
        return cls(root, metadata, identity, rows)


def check_size(rows: int, size: int) -> None:
    """Refuse a file of ``size`` bytes that says to have more rows than it can.

    Raises:
        ValueError: with both numbers.
    """
    if not 0 <= rows <= ROWS_PER_BYTE * size:
        raise ValueError(f"it says to have {rows} rows in {size} bytes")


def as_written(column: Any, name: str, first: int) -> Any:
    """A part of a column as an index has it, whatever the program that wrote it calls its type.

    Args:
        column: pyarrow array.
        name: of the column.
        first: number of its first clip, for messages.

    Raises:
        ValueError: a value is missing, or cannot be of the column's type; pyarrow's errors among them.
    """
    import pyarrow as pa

    wanted = schema().field(name).type
    dictionary = pa.types.is_dictionary(column.type) and column.type.value_type == wanted
    if column.type != wanted and not dictionary:
        if pa.types.is_string(column.type) and not pa.types.is_string(wanted):
            raise ValueError(f"its column {name} holds texts, not {wanted}")
        column = column.cast(wanted)
    if name not in MAY_LACK and column.null_count:
        place = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"clip {place} has no {name}")
    return column


def check_numbers(values: np.ndarray, name: str, positions: np.ndarray | None) -> None:
    """Refuse numbers that no clip can have.

    Args:
        values: (clips,).
        name: of their column.
        positions: (clips,), which clips of the index they are of; None is all in order.

    Raises:
        ValueError: naming the first clip at fault.
    """
    if name in BOUNDS:
        least, most = BOUNDS[name]
        bad = (values < least) | (values > most)
    else:
        bad = ~((values > 0) & (values < np.inf))
    if bad.any():
        place = int(np.argmax(bad))
        number = place if positions is None else positions[place]
        raise ValueError(f"clip {number} has {name}={values[place]}")


def odd_splits(splits: Mapping[str, int]) -> str | None:
    """What to say of clips whose split nothing reads; None where there are none.

    Args:
        splits: clips of each split.
    """
    odd = {name: clips for name, clips in splits.items() if clips and name not in SPLITS}
    if not odd:
        return None
    first = ", ".join(f"{shown(name)!r:.60} has {clips}" for name, clips in list(odd.items())[:3])
    return (
        f"{sum(odd.values())} of {sum(splits.values())} clips are of a split {NO_SPLIT} ({first}), and are left out: "
        "give them one of these in the index"
    )


def enlarged(heights: np.ndarray, widths: np.ndarray, height: int, width: int) -> str | None:
    """What to say of clips, int (clips,), that are smaller than data.height x data.width; None where none is."""
    small = np.flatnonzero((heights < height) | (widths < width))
    if not len(small):
        return None
    least = small[np.argmin(heights[small].astype(np.int64) * widths[small])]
    return (
        f"{len(small)} of {len(heights)} clips are smaller than data.height={height} x data.width={width} (the "
        f"smallest is {heights[least]} x {widths[least]}) and will be enlarged"
    )
