"""Writes WebDataset tar shards with an index, and reads their members one by one.

``000000.tar`` holds ``key.mp4``, ``key.txt`` (first caption) and ``key.json`` (all captions, split, factors)
of each clip, so the shards can be read by any WebDataset loader as well.
"""

import io
import json
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

from typing_extensions import override

from vidlab.data.names import is_utf8, shown
from vidlab.data.storage.clip_row import INDEX_NAME, SPLITS, ClipRow
from vidlab.data.storage.index_writer import IndexWriter
from vidlab.data.video import VideoInfo
from vidlab.errors import CorruptClipError, DataError
from vidlab.factors import Factors
from vidlab.files import named_in_errors

# A tar header, and the longest name in it.
HEADER, LONGEST_NAME, LARGEST_SIZE = tarfile.BLOCKSIZE, 100, 8**11
MISMATCH = "shard and index do not belong together"


# Bytes of a clip that are read at once even where a few frames of it are wanted.
READ_WHOLE = 1 << 20


class ShardWriter:
    """Write clips into tar shards, then the index.

    Used as a context manager. The index is written last and in one step, so a folder with an index is
    complete; after an exception there is none, and the next writer starts over. The bytes written depend only
    on what is added.

    Args:
        folder: made when missing. Unfinished shards of an earlier attempt are removed.
        clips_per_shard: clips in each tar file.
        metadata: JSON values recorded in the index and part of its hash.

    Raises:
        DataError: when the folder already holds a finished data set, or a clip cannot be added.
    """

    def __init__(self, folder: Path, clips_per_shard: int = 512, metadata: Mapping[str, Any] | None = None) -> None:
        if clips_per_shard < 1:
            raise ValueError(f"clips_per_shard must be at least 1, got {clips_per_shard}")
        self.folder = Path(folder)
        self.clips_per_shard = clips_per_shard
        self.metadata = dict(metadata or {})
        self._rows: list[ClipRow] = []  # of the shard that is being written
        self._shards = 0
        self._keys: set[str] = set()
        self._tar: Any = None
        self._stream: Any = None

    def __enter__(self) -> "ShardWriter":
        if (self.folder / INDEX_NAME).exists():
            raise DataError(f"{self.folder} already holds a finished data set; write to another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("[0-9]*.tar"):
            leftover.unlink()
        self._index = IndexWriter(self.folder, self.metadata).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._tar is not None:
            for file in (self._tar, self._stream):
                with suppress(OSError):  # a full disk has had its message already
                    file.close()
        self._index.__exit__(kind, error, trace)

    def add(
        self,
        key: str,
        video: bytes,
        info: VideoInfo,
        captions: Sequence[str],
        split: str = "train",
        source: str = "",
        factors: Factors | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Add one clip; see ``ClipRow`` for the fields. A ``.`` would end the key in a tar file."""
        self._check(key, captions, split, source)
        if self._tar is None:
            self._open_shard()
        captions = tuple(captions)
        record = {"captions": captions, "split": split, "source": source, **vars(info)}
        record |= {"factors": factors, **({"scores": dict(scores)} if scores else {})}
        text = json.dumps(record, sort_keys=True, default=vars)
        with named_in_errors(self.folder / self._shard_name()):
            self._tar.write({"__key__": key, "mp4": video, "txt": captions[0].encode(), "json": text.encode()})
        self._keys.add(key)
        # The offset is read back from the tar file when the shard is closed.
        self._rows.append(
            ClipRow(
                key=key,
                shard=self._shard_name(),
                offset=-1,
                size=len(video),
                captions=captions,
                split=split,
                source=source,
                factors=factors,
                scores=dict(scores or {}),
                crc=crc32(video),
                **vars(info),
            )
        )
        if len(self._rows) >= self.clips_per_shard:
            self._close_shard()

    def _check(self, key: str, captions: Sequence[str], split: str, source: str) -> None:
        if not key or "." in key or "/" in key or key in self._keys:
            raise DataError(f"clip key {key!r} must be new, not empty, and without '.' and '/'")
        if split not in SPLITS:
            raise DataError(f"clip {key}: split {split!r} is not one of {', '.join(SPLITS)}")
        if not captions or not all(captions):
            raise DataError(f"clip {key} has no caption, or an empty one")
        if not all(map(is_utf8, (key, source, *captions))):
            raise DataError(f"clip {shown(key)}: its key, source or caption is not valid Unicode")

    def _shard_name(self) -> str:
        return f"{self._shards:06d}.tar"

    def _open_shard(self) -> None:
        from webdataset.writer import TarWriter

        self._stream = (self.folder / self._shard_name()).open("wb")
        # A fixed time and owner make equal clips give equal bytes.
        self._tar = TarWriter(self._stream, user="vidlab", group="vidlab", encoder=False, mtime=0)

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        with named_in_errors(self.folder / self._shard_name()):
            self._tar.close()
            self._stream.close()
        self._tar = self._stream = None
        with tarfile.open(self.folder / self._rows[-1].shard) as tar:
            offsets = {member.name: member.offset_data for member in tar.getmembers()}
        for row in self._rows:
            self._index.add(replace(row, offset=offsets[f"{row.key}.mp4"]))
        self._rows = []
        self._shards += 1


def read_member(
    folder: Path, shard: str, offset: int, size: int, key: str | None = None, crc: int | None = None
) -> bytes:
    """The bytes of one clip: ``size`` bytes of ``folder/shard`` from ``offset``.

    Args:
        folder: what ``shard`` is relative to.
        shard: a tar file, or a file that is the clip.
        offset: first byte.
        size: bytes.
        key: of a clip in a tar file, to be compared with the name in the member's header; None compares nothing.
        crc: CRC-32 that the bytes must have; None compares nothing.

    Raises:
        CorruptClipError: when the shard is missing, unreadable, damaged, too short, or another than the index was made
            of.
    """
    path = Path(folder) / shard
    header = HEADER if _has_header(shard, offset, key) else 0
    handle = _opened(path, offset, size)
    try:
        data = _read(handle, header + size, offset - header)
    except OSError as error:
        raise CorruptClipError(f"{shown(path)}: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(data) != header + size:
        raise _cut_off(path, len(data) - header, offset, size)
    if header and key is not None:
        _check_header(data[:header], size, key, path)
    if crc is not None and crc32(memoryview(data)[header:]) != crc:
        raise CorruptClipError(
            f"{shown(path)}: damaged, the bytes of the clip are not those that were written (a folder that vidlab made "
            "can be deleted: it is made again)"
        )
    return data[header:]


def _opened(path: Path, offset: int, size: int) -> int:
    """A handle of a file that has ``size`` bytes at ``offset``; the caller closes it."""
    try:
        # a pipe is opened without waiting for its other end, and then refused
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CorruptClipError(f"{shown(path)}: {reason}") from error
    state = os.fstat(handle)
    if stat.S_ISREG(state.st_mode) and 0 <= offset <= offset + size <= state.st_size:
        return handle
    os.close(handle)
    if not stat.S_ISREG(state.st_mode):
        raise CorruptClipError(f"{shown(path)}: this is no file")
    raise _cut_off(path, state.st_size - offset, offset, size)


def _cut_off(path: Path, there: int, offset: int, size: int) -> CorruptClipError:
    return CorruptClipError(f"{shown(path)}: cut off, {max(there, 0)} of {size} bytes at offset {offset}")


def _read(handle: int, count: int, offset: int) -> bytes:
    """``count`` bytes, fewer at the end of the file alone; Linux gives at most 2 GiB at a time."""
    data = os.pread(handle, count, offset)
    while len(data) < count and (more := os.pread(handle, count - len(data), offset + len(data))):
        data += more
    return data


def _has_header(shard: str, offset: int, key: str | None) -> bool:
    """Whether a tar header with the clip's name stands before it."""
    return key is not None and shard.lower().endswith(".tar") and offset >= HEADER


def _check_header(header: bytes, size: int, key: str, path: Path) -> None:
    """Refuse a member that is not the one the index means: the shard was changed, or belongs to another index."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        raise CorruptClipError(f"{shown(path)}: no tar member begins where the index says; {MISMATCH}") from None
    # a long name, one that is not ASCII (a key spells bytes that are no UTF-8 with a backslash) and a size of 8 GiB or
    # more stand in a header of their own before this one
    named = key.isascii() and "\\" not in key and len(member.name) < LONGEST_NAME
    sized = size < LARGEST_SIZE
    if (sized and member.size != size) or (named and _stem(member.name) != _stem(key)):
        raise CorruptClipError(
            f"{shown(path)}: the index says {size} bytes here, and the shard has {shown(member.name)} of {member.size} "
            f"bytes; {MISMATCH}"
        )


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


class MemberFile(io.RawIOBase):
    """A part of a file that looks like a whole one to a decoder, read where it is asked for.

    Args:
        path: the file.
        offset: first byte of the part.
        size: bytes of the part.

    Raises:
        CorruptClipError: when the file is missing, unreadable or ends before the part does.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self.offset, self.size, self._place = offset, size, 0
        self._handle: int | None = None
        self._handle = _opened(path, offset, size)

    @override
    def read(self, count: int | None = -1) -> bytes:
        left = self.size - self._place
        wanted = left if count is None or count < 0 else min(count, left)
        if wanted <= 0 or self._handle is None:
            return b""
        data = _read(self._handle, wanted, self.offset + self._place)
        self._place += len(data)
        return data

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, place + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence])
        return self._place

    @override
    def tell(self) -> int:
        return self._place

    @override
    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        super().close()


def open_member(
    folder: Path,
    shard: str,
    offset: int,
    size: int,
    key: str | None = None,
    crc: int | None = None,
    whole: int = READ_WHOLE,
) -> bytes | MemberFile:
    """One clip to decode some frames of: its bytes, or where it is longer than ``whole`` bytes a file that reads what
    the decoder asks for, of which ``crc`` is not compared.

    Raises:
        CorruptClipError: as ``read_member``.
    """
    if size <= whole:
        return read_member(folder, shard, offset, size, key, crc)
    path = Path(folder) / shard
    if _has_header(shard, offset, key):
        with MemberFile(path, offset - HEADER, HEADER) as header:
            _check_header(header.read(), size, key or "", path)
    return MemberFile(path, offset, size)
