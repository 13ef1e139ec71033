"""Parquet files whose damage is noticed: pages carry the format's own checksums, and the footer is sealed.

The footer says where everything is and holds the metadata, its seal among them: a CRC-32 of the footer with zeros in
its place. Files of other programs, and of earlier versions, have no seal and are read as they are.
"""

import re
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from vidlab.digests import DamagedError

KEY, SEAL = "vidlab.seal", re.compile(rb"crc32:[0-9a-f]{8}")
OPEN = b"crc32:00000000"
PARQUET = b"PAR1"
PAGES = {"write_page_checksum": True}
"""What writers pass to pyarrow."""


def seal(path: Path, writer: Any) -> None:
    """Close a ``ParquetWriter`` of ``PAGES`` and seal its file."""
    writer.add_key_value_metadata({KEY: OPEN.decode()})
    writer.close()
    with path.open("r+b") as file:
        start, footer = _footer(file)
        (found,) = SEAL.finditer(footer)
        file.seek(start + found.start())
        file.write(b"crc32:%08x" % crc32(footer))


def open_parquet(path: Path, **options: Any) -> Any:
    """A ``pyarrow.parquet.ParquetFile`` that verifies what it reads.

    Raises:
        DamagedError: its footer is not the one that was written.
        OSError, ValueError: as of pyarrow, which raises OSError for a damaged page.
    """
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        _, footer = _footer(file)
    seals = SEAL.findall(footer)
    if len(seals) > 1 or (seals and seals[0] != b"crc32:%08x" % crc32(SEAL.sub(OPEN, footer))):
        raise DamagedError("its footer is not the one that was written")
    return pq.ParquetFile(path, page_checksum_verification=True, **options)


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer begins, and all that follows it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read()
    start = size - 8 - int.from_bytes(tail[:4], "little")
    if tail[4:] != PARQUET or start < 0:
        raise DamagedError("it is cut off or no Parquet file")
    file.seek(start)
    return start, file.read()
