"""Checksums of what vidlab writes, compared on reading: a file that a disk or a copy has damaged is named, not used.

CRC-32 finds every burst of up to 32 wrong bits and misses one in four billion of other accidents. It is no defense
against intent. It is the one that the zip archives of ``torch.save`` and the pages of Parquet files carry themselves,
so that checkpoints of any age are verified. Files without one are read as they are.
"""

import io
import json
import mmap
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

SEAL = "_crc32"
"""Where a sealed JSON object keeps its checksum; readers of published configurations skip such private keys."""
MARK = "_checked"
"""That it has one: a damaged name of the checksum makes it none that was never sealed."""

ARCHIVE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # a record's: magic, lengths of its name and its extra field
FOLDER = 0x10  # the attribute by which an archive marks folders
THREADS = min(4, os.cpu_count() or 1)  # zlib gives the lock of the interpreter back while it computes


class DamagedError(ValueError):
    """Content differs from what was written; the message goes on from "FILE is damaged: "."""


def checksum(parts: Iterable[bytes | memoryview]) -> int:
    """CRC-32 of parts as if they were one, unsigned."""
    found = 0
    for part in parts:
        found = crc32(part, found)
    return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum, which does not depend on layout or order."""
    return {**content, MARK: True, SEAL: _of_json(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its checksum.

    Raises:
        DamagedError: it is not the object that was sealed.
    """
    rest = {name: value for name, value in content.items() if name not in (SEAL, MARK)}
    if (SEAL in content or MARK in content) and content.get(SEAL) != _of_json(rest):
        raise DamagedError(
            f"its {SEAL} is not that of its content; where it was edited on purpose, delete the entries {MARK} and "
            f"{SEAL}"
        )
    return rest


def _of_json(content: Mapping[str, Any]) -> str:
    return f"{crc32(json.dumps(content, sort_keys=True, separators=(',', ':')).encode()):08x}"


def check_archive(file: Path, suffix: str = "") -> None:
    """Compare the records of a ``torch.save`` file, stored as zip archives store them, with their checksums.

    Args:
        file: what is no zip archive, as files of old versions of torch, is left to its reader.
        suffix: of the names of the records to look at; all by default.

    Raises:
        DamagedError: naming the record.
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        if stream.read(len(ARCHIVE)) != ARCHIVE:
            return
        records = [one for one in _records(stream) if one.filename.endswith(suffix)]
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, ThreadPoolExecutor(THREADS) as pool:
            _compare(records, pool.map(partial(_intact, content), records))


def check_archive_bytes(content: bytes) -> None:
    """As ``check_archive``, of a file's bytes.

    Raises:
        DamagedError: naming the record.
    """
    if content.startswith(ARCHIVE):
        records = _records(io.BytesIO(content))
        _compare(records, map(partial(_intact, content), records))


def _records(stream: io.BufferedReader | io.BytesIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(stream) as archive:
            return archive.infolist()
    # damaged names, sizes and fields raise whatever the module stumbles over
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise DamagedError(f"its table of records is cut off or damaged ({error})") from None


def _compare(records: Iterable[zipfile.ZipInfo], intact: Iterable[bool]) -> None:
    for record, whole in zip(records, intact, strict=True):
        if not whole:
            raise DamagedError(f"its record {record.filename!r} is not the one that was written")


def _intact(content: mmap.mmap | bytes, record: zipfile.ZipInfo) -> bool:
    """Whether the bytes that torch takes for a record are those that were written."""
    start = record.header_offset
    if record.compress_type != zipfile.ZIP_STORED or not 0 <= start <= len(content) - LOCAL_HEADER.size:
        return False
    if record.external_attr & FOLDER:  # of one, torch reads nothing, and takes what was in memory
        return False
    magic, name, extra = LOCAL_HEADER.unpack_from(content, start)
    start += LOCAL_HEADER.size + name + extra
    with memoryview(content) as whole, whole[start : start + record.file_size] as data:
        return magic == ARCHIVE and len(data) == record.file_size and crc32(data) == record.CRC
