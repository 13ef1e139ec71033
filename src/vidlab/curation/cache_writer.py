"""Shards of encoded clips: each is complete or absent, whatever stops the writer."""

import contextlib
import errno
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from vidlab.data.names import shown
from vidlab.data.storage.index import INDEX_NAME
from vidlab.data.storage.latent_cache import COLUMNS, HEADER_NAME, CacheHeader, array_bytes, differences
from vidlab.data.storage.parquet import PAGES, seal
from vidlab.data.storage.tar_headers import Damage, read_headers
from vidlab.digests import MARK, SEAL, checksum, sealed, unsealed
from vidlab.errors import DataError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = tarfile.BLOCKSIZE
LOCK_NAME = "writer.lock"


@dataclass(frozen=True)
class CacheRecord:
    """What the index says of a view of a clip, as in ``CachedClip``.

    ``error`` is why there is none, ``crc`` the checksum of its arrays' files one after the other.
    """

    key: str
    view: int
    position: int
    frames: int = 0
    height: int = 0
    width: int = 0
    stride: int = 0
    crop_top: int = 0
    crop_left: int = 0
    caption: int = 0
    error: str | None = None
    crc: int | None = None


@dataclass(frozen=True)
class EncodedClip:
    """One view of one clip, ready to be written: what is said of it, and its arrays by name."""

    record: CacheRecord
    parts: Mapping[str, Tensor]


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:06d}.tar"


@contextmanager
def nothing_lost(folder: Path, finished: str = "[0-9]*.tar", what: str = "finished shards") -> Iterator[None]:
    """Turn a write that fails into one message.

    Args:
        folder: that is written.
        finished: pattern of the files in it that are kept.
        what: these are.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        count = len(list(folder.glob(finished))) if folder.is_dir() else 0
        cause = "the disk is full" if error.errno in FULL else f"it cannot be written ({error.strerror or error})"
        raise UserError(
            f"folder={folder}: {cause}. {count} {what} are kept. Make room and run the same command again; "
            "it continues where it stopped"
        ) from error


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """One writer of a folder at a time; the system lets go of the lock when a writer is killed.

    Args:
        folder: made where it is not there.
        doing: what the other one does, for the message.

    Raises:
        UserError: another process is at it, or the folder cannot be written.
    """
    with nothing_lost(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise UserError(f"folder={folder}: another process is {doing}") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name ``path`` when the block ends well, once its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_folder(folder: Path, header: CacheHeader) -> None:
    """Begin a cache, or find the beginning of this one; half-written files of a killed run are removed.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    with nothing_lost(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        if not (folder / HEADER_NAME).exists():
            if any(path for path in folder.iterdir() if path.name != LOCK_NAME):
                raise UserError(f"folder={folder} holds other files: give an empty or a new folder")
            with whole_file(folder / HEADER_NAME) as temporary:
                temporary.write_text(header.text())
            return
    there = json.loads(CacheHeader.read(folder).text())
    here = json.loads(header.text())
    found = differences(_flat(there), _flat(here))
    if found:
        raise UserError(f"folder={folder} holds another cache. {'; '.join(found)}. Give another folder")


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    return {**header["key"], **{name: value for name, value in header.items() if name not in ("key", SEAL, MARK)}}


def write_shard(folder: Path, number: int, clips: Iterable[tuple[int, EncodedClip]]) -> None:
    """Write one shard: ``clips`` with their numbers. The bytes depend on nothing else.

    Raises:
        UserError: the disk is full.
    """
    with nothing_lost(folder), whole_file(folder / shard_name(number)) as temporary, temporary.open("wb") as stream:
        # webdataset's writer warns on stderr when its file is closed after a failed write
        tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for name, clip in clips:
            arrays = {part: array_bytes(tensor) for part, tensor in clip.parts.items()}
            record = replace(clip.record, crc=checksum(arrays.values()))
            _add(tar, f"{name:010d}.json", json.dumps(sealed(asdict(record)), sort_keys=True).encode())
            for part, content in arrays.items():
                _add(tar, f"{name:010d}.{part}.npy", content)
        tar.close()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # no time and no owner: equal clips give equal bytes
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def missing_shards(folder: Path, header: CacheHeader) -> list[int]:
    """Numbers of the shards that are not finished."""
    return [number for number in range(header.shards) if not (folder / shard_name(number)).is_file()]


def write_cache_index(folder: Path, header: CacheHeader) -> None:
    """Write the index from the finished shards, sorted by view and position.

    Raises:
        UserError: a shard cannot be read, or clips are missing; the disk is full.
        DataError: no clip could be encoded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([_table(_rows(folder / shard_name(number))) for number in range(header.shards)])
    table = table.sort_by([("view", "ascending"), ("position", "ascending")])
    numbers = table.column("view").to_numpy().astype(np.int64) * header.clips + table.column("position").to_numpy()
    if not np.array_equal(numbers, np.arange(header.total)):
        raise UserError(f"folder={folder}: its shards do not hold every clip once. Delete the shards and run again")
    if table.num_rows and table.column("error").null_count == 0:
        key, error = (shown(table.column(name)[0].as_py()) for name in ("key", "error"))
        raise DataError(
            f"folder={folder}: none of {header.total} clips could be encoded, first {key}: {error}. Mend that, delete "
            "the folder and run again"
        )
    with nothing_lost(folder), whole_file(folder / INDEX_NAME) as temporary:
        writer = pq.ParquetWriter(temporary, table.schema, **PAGES)
        writer.write_table(table)
        seal(temporary, writer)


def _rows(path: Path) -> list[dict[str, Any]]:
    """What a shard holds: a row per clip, with the part of the file that its members take."""
    try:
        found: dict[str, dict[str, Any]] = {}
        with path.open("rb") as file:
            for member in read_headers(path):
                if isinstance(member, Damage):
                    raise ValueError(f"byte {member.offset}: {member.reason}")
                # a header is one block: names are short
                place = {"offset": member.offset - BLOCK, "shard": path.name}
                row = found.setdefault(member.name.partition(".")[0], place)
                row["size"] = member.offset + -(-member.size // BLOCK) * BLOCK - row["offset"]
                if member.name.endswith(".json"):
                    file.seek(member.offset)
                    row.update(asdict(CacheRecord(**unsealed(json.loads(file.read(member.size))))))
        nameless = [name for name, row in found.items() if "key" not in row]
        if nameless:
            raise ValueError(f"{nameless[0]} has no record")
        return list(found.values())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run the same command again") from error


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    text, long = ("key", "shard", "error"), ("position", "offset", "size", "crc")
    kinds = [(name, pa.string() if name in text else pa.int64() if name in long else pa.int32()) for name in COLUMNS]
    return pa.table({name: [row[name] for row in rows] for name in COLUMNS}, schema=pa.schema(kinds))
