"""What is in a tar file of samples: their members by header alone, damage included.

A sample is a run of members that share the part of their name before the first dot of the file name, as WebDataset
reads them: ``a/000.mp4``, ``a/000.txt`` and ``a/000.json`` are the sample ``a/000``.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file of a tar: name, first byte and size. ``whole`` is False where the tar ends before it does."""

    name: str
    offset: int
    size: int
    whole: bool = True


@dataclass(frozen=True)
class Damage:
    """What is wrong at a place, in bytes, where a header should be."""

    offset: int
    reason: str


@dataclass
class Sample:
    """The members of one sample, by lower-case suffix."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


def read_headers(path: Path) -> Iterator[Member | Damage]:
    """The regular files of an uncompressed tar, in order.

    After a damaged header reading goes on with the next block that is one. A tar that was cut off ends with a member
    that is not whole, or with damage: the closing blocks of zeros are missing.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start + BLOCK <= size:
            file.seek(start)
            tar = None
            try:
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 closing it does not close the file
                for entry in tar:
                    if entry.isreg():
                        yield Member(entry.name, entry.offset_data, entry.size, entry.offset_data + entry.size <= size)
            except tarfile.TarError:
                pass
            start = tar.offset if tar is not None else start
            file.seek(start)
            block = file.read(BLOCK)
            if start > size or (len(block) == BLOCK and not any(block)):
                return
            if len(block) < BLOCK:
                break
            yield Damage(start, "a header is damaged")
            start = _next_header(file, start + BLOCK)
            if start >= size:
                return
    yield Damage(size, "the file ends without tar's closing blocks: it may be cut off")


def _next_header(file: BinaryIO, start: int) -> int:
    """Where the next block with tar's magic word and a right checksum begins, or the file ends."""
    file.seek(start)
    while block := file.read(BLOCK):
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return start
            except tarfile.TarError:
                pass
        start += BLOCK
    return start


def samples(path: Path) -> Iterator[Sample | Damage]:
    """Samples in order; members without a suffix and those that WebDataset keeps for itself (``__x__``) are none."""
    current: Sample | None = None
    for member in read_headers(path):
        if isinstance(member, Damage):
            if current is not None:
                yield current
            current = None
            yield member
            continue
        name = split_name(member.name)
        if name is None:
            continue
        key, suffix = name
        if current is None or current.key != key or suffix in current.members:
            if current is not None:
                yield current
            current = Sample(key)
        current.members[suffix] = member
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case suffix of a member; None when it belongs to no sample."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    top = name.partition("/")[0]
    if not stem or not dot or (len(top) >= 4 and top.startswith("__") and top.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()
