"""Reads the headers of a tar file: where each regular file lies in it, and what is damaged.

Every number in a header is doubted, since shards come from anywhere: sizes may be negative or reach beyond the file,
names may be cut off. Each header is parsed and its checksum compared by ``tarfile``; going from one to the next is
done here, so that it always goes forward, and what is damaged is passed over and said.
"""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vidlab.data.names import shown

BLOCK = tarfile.BLOCKSIZE
# Bytes that are looked through at a time.
CHUNK = 1 << 20
# A header that only extends the next one is not longer than this: names end at 4096 bytes.
LONGEST_EXTENSION = 1 << 20

PAX, PAX_OF_ALL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, PAX_OF_ALL, *PAX)
# Where a header of old GNU sparse files says that a block with more of its map follows, and where that block does.
MORE_IN_HEADER, MORE_IN_BLOCK = 482, 504

CUT_OFF = "cut off: the shard ends before it does"
NOT_CLOSED = "the file ends without tar's closing blocks: it may be cut off"
UNKNOWN_KIND = "its header is of a kind that no tar has ({})"
SPARSE = "it is stored as a sparse file, without its holes: pack the shard without tar's --sparse (-S)"
HARD_LINK = "it is a hard link to {}: pack the shard with tar --hard-dereference"
SOFT_LINK = "it is a symbolic link to {}: pack the shard with tar --dereference (-h)"

# How files begin that people name .tar and that are none, and what to do.
OTHERS: Mapping[bytes, str] = {
    b"\x1f\x8b": "it is compressed by gzip, and cannot be read at an offset: unpack it with gunzip",
    b"BZh": "it is compressed by bzip2, and cannot be read at an offset: unpack it with bunzip2",
    b"\xfd7zXZ": "it is compressed by xz, and cannot be read at an offset: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd, and cannot be read at an offset: unpack it with unzstd",
    b"\x04\x22\x4d\x18": "it is compressed by lz4, and cannot be read at an offset: unpack it with unlz4",
    b"PK\x03\x04": "it is a zip file: unpack it and pack it again as tar",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<": "it begins like a web page: the download failed",
}


@dataclass(frozen=True)
class Member:
    """A regular file in a tar file.

    Args:
        name: with its folders; bytes that are no UTF-8 are surrogates.
        offset: of its first byte in the tar.
        size: bytes.
        fault: why its bytes cannot be read at that place; None where they can.
        cut_off: whether the tar, or what is left of it after damage, ends before the member does.
    """

    name: str
    offset: int
    size: int
    fault: str | None = None
    cut_off: bool = False


@dataclass(frozen=True)
class Damage:
    """What is wrong at a place, in bytes, where a header should be."""

    offset: int
    reason: str


def read_headers(path: Path) -> Iterator[Member | Damage]:
    """The regular files and the links of an uncompressed tar, in order.

    After damage reading goes on with the next block that is a header. A tar that was cut off ends with a member that
    is, or with damage: the closing blocks of zeros are missing.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        yield from headers_of(file, os.fstat(file.fileno()).st_size)


def headers_of(file: io.BufferedIOBase, size: int) -> Iterator[Member | Damage]:
    """As ``read_headers``, of an open file of ``size`` bytes."""
    tar = _Tar(file, size)
    other = tar.other_format()
    if other is not None:
        yield Damage(0, other)
        return
    start: int | None = 0
    while start is not None:
        try:
            entry = tar.entry(start)
        except _DamagedError as error:
            yield Damage(error.offset, str(error))
            start = tar.next_header(error.resume)
            continue
        if entry is None:
            return
        start = entry.end
        if entry.end - entry.padding > size:
            start = tar.next_header(entry.start)
            entry = entry.beyond(size, cut_off=start is None)
        if entry.member is not None:
            yield entry.member


class _DamagedError(Exception):
    """There is no header at ``offset``; one may follow from ``resume`` on."""

    def __init__(self, offset: int, reason: str, resume: int | None = None) -> None:
        super().__init__(reason)
        self.offset = offset
        self.resume = offset + BLOCK if resume is None else resume


@dataclass(frozen=True)
class _Entry:
    """A header with those that extend it: its member, where its content starts, and where the next header may be."""

    member: Member | None
    start: int
    end: int
    padding: int

    def beyond(self, size: int, cut_off: bool) -> "_Entry":
        """The entry when its content ends after the file of ``size`` bytes does."""
        if self.member is None:
            return self
        said = f"its header says {self.member.size} bytes, and the shard has {size - self.member.offset} after it"
        found = replace(self.member, fault=CUT_OFF if cut_off else said, cut_off=True)
        return replace(self, member=found)


@dataclass
class _Extended:
    """What the headers before a member's own say of it; the first to say a thing is right."""

    name: str | None = None
    link: str | None = None
    size: int | None = None
    sparse: bool = False

    def take(self, kind: bytes, content: bytes) -> None:
        """Raises ValueError for content that is no extension."""
        if kind == tarfile.GNUTYPE_LONGNAME:
            self.name = self.name or _text(content)
        elif kind == tarfile.GNUTYPE_LONGLINK:
            self.link = self.link or _text(content)
        elif kind in PAX:
            fields = _pax_fields(content)
            self.sparse = self.sparse or any(name.startswith(b"GNU.sparse.") for name in fields)
            for name in (b"GNU.sparse.name", b"path"):
                self.name = self.name or _text(fields.get(name, b"")).rstrip("/")
            self.link = self.link or _text(fields.get(b"linkpath", b""))
            if self.size is None and b"size" in fields:
                self.size = _size(fields[b"size"])


@dataclass(frozen=True)
class _Tar:
    """A tar of ``size`` bytes."""

    file: io.BufferedIOBase
    size: int

    def read(self, start: int, count: int) -> bytes:
        self.file.seek(start)
        return self.file.read(count)

    def other_format(self) -> str | None:
        """What the file is when it is no tar, as far as its first bytes tell."""
        if self.size == 0:
            return "the file is empty"
        beginning = self.read(0, BLOCK)
        return next((reason for magic, reason in OTHERS.items() if beginning.startswith(magic)), None)

    def entry(self, start: int) -> _Entry | None:
        """The entry whose first header is at ``start``; None at the end of the tar."""
        extended, place = _Extended(), start
        while True:
            header = self.header(place, start)
            if header is None:
                return None
            if header.type not in EXTENSIONS:
                return self._entry(header, extended, place)
            end = place + BLOCK + header.size
            if header.size > LONGEST_EXTENSION or end > self.size:
                reason = f"an extended header of {header.size} bytes" if end <= self.size else NOT_CLOSED
                raise _DamagedError(place, reason)
            try:
                extended.take(header.type, self.read(place + BLOCK, header.size))
            except ValueError:
                raise _DamagedError(place, "an extended header is damaged") from None
            place = end + -header.size % BLOCK

    def header(self, place: int, start: int) -> tarfile.TarInfo | None:
        """The header at ``place``; None at the end of the tar. Those that extend it begin at ``start``."""
        block = self.read(place, BLOCK)
        if len(block) < BLOCK:
            raise _DamagedError(self.size, NOT_CLOSED)
        if not any(block):
            more = self._after_zeros(place)
            if more is None and place == start:
                return None
            if more is None:
                raise _DamagedError(start, "an extended header with no header after it", self.size)
            raise _DamagedError(
                place, f"zeros, and more of the shard after them, at byte {more}: a part is missing, or shards were "
                "joined to one file", more
            )  # fmt: skip
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError):
            raise _DamagedError(start, "a header is damaged", place + BLOCK) from None
        if header.size < 0:
            raise _DamagedError(start, f"a header says {header.size} bytes", place + BLOCK)
        return header

    def _entry(self, header: tarfile.TarInfo, extended: _Extended, place: int) -> _Entry:
        size = header.size if extended.size is None else extended.size
        sparse = extended.sparse or header.type == tarfile.GNUTYPE_SPARSE
        start = place + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            start = self._after_sparse_map(place)
        name, link = extended.name or header.name, shown(extended.link or header.linkname)
        # as tarfile reads them: links and folders have no content, unknown kinds may have some
        size = size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0
        member = None
        if header.isreg():
            member = Member(name, start, size, SPARSE if sparse else None)
        elif header.islnk() or header.issym():
            member = Member(name, start, size, (HARD_LINK if header.islnk() else SOFT_LINK).format(link))
        elif header.type not in tarfile.SUPPORTED_TYPES:
            member = Member(name, start, size, UNKNOWN_KIND.format(shown(header.type.decode("latin-1"))))
        padding = -size % BLOCK
        return _Entry(member, start, start + size + padding, padding)

    def _after_sparse_map(self, place: int) -> int:
        more, start = self.read(place + MORE_IN_HEADER, 1), place + BLOCK
        while more not in (b"", b"\0"):
            more = self.read(start + MORE_IN_BLOCK, 1)
            start += BLOCK
        return start

    def _after_zeros(self, start: int) -> int | None:
        """The first block from ``start`` on that is not all zeros."""
        while chunk := self.read(start, CHUNK):
            rest = chunk.lstrip(b"\0")
            if rest:
                return start + (len(chunk) - len(rest)) // BLOCK * BLOCK
            start += len(chunk)
        return None

    def next_header(self, start: int) -> int | None:
        """Where the next block from ``start`` on with tar's magic word and a right checksum begins."""
        while len(chunk := self.read(start, CHUNK)) >= BLOCK:
            place = chunk.find(b"ustar")
            while place >= 0:
                begin = place - 257
                if begin >= 0 and begin % BLOCK == 0 and _is_header(chunk[begin : begin + BLOCK]):
                    return start + begin
                place = chunk.find(b"ustar", place + 1)
            start += CHUNK
        return None


def _is_header(block: bytes) -> bool:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size >= 0
    except (tarfile.TarError, ValueError):
        return False


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _size(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise ValueError(f"{digits!r} is no size")
    return int(digits)


def _pax_fields(content: bytes) -> dict[bytes, bytes]:
    """Records ``LENGTH NAME=VALUE`` with a line end, LENGTH counting the whole record; the last of a name is right."""
    fields: dict[bytes, bytes] = {}
    place = 0
    while place < len(content) and content[place]:
        digits = content[place : place + 20].partition(b" ")[0]
        length = _size(digits)
        record = content[place : place + length]
        name, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) < length or length < 5 or not name or not equals or record[-1:] != b"\n":
            raise ValueError("no record of an extended header")
        fields[name] = value
        place += length
    return fields
