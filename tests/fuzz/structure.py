"""Where the parts of a file begin and end, where it says how long they are, and how its checksums are set right again.

Damage at such a place gets deeper into a reader than damage anywhere: a length that is too large, a part that is there
twice, a wrong value below a right checksum.
"""

import contextlib
import io
import pickletools
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = tarfile.BLOCKSIZE
MP4_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")
EBML_FOLDERS = (0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0, 0xE0, 0x1C53BB6B, 0xBB, 0xB7, 0x114D9B74, 0x4DBB)


@dataclass(frozen=True)
class Length:
    """A number of ``size`` bytes at ``offset`` that says how much follows; ``order`` is big, little, octal or vint."""

    offset: int
    size: int
    order: str

    def put(self, data: bytes, value: int) -> bytes:
        """The data with another number there."""
        if self.order == "octal":
            digits = b"\x80" + (value % 2**88).to_bytes(11, "big") if value < 0 else b"%o" % value
            field = digits[: self.size - 1].rjust(self.size - 1, b"0") + b"\0" if value >= 0 else digits[: self.size]
        elif self.order == "vint":
            field = ((value % (1 << 7 * self.size)) | 1 << 7 * self.size).to_bytes(self.size + 1, "big")[-self.size :]
        else:
            field = (value % (1 << 8 * self.size)).to_bytes(self.size, "big" if self.order == "big" else "little")
        return data[: self.offset] + field + data[self.offset + self.size :]


@dataclass(frozen=True)
class Structure:
    """Of one file: (start, end) of its parts, the numbers that say how long they are."""

    parts: tuple[tuple[int, int], ...] = ()
    lengths: tuple[Length, ...] = ()


def mp4(data: bytes) -> Structure:
    """Boxes, those within boxes too."""
    parts, lengths, pending = [], [], [(0, len(data))]
    while pending:
        start, stop = pending.pop()
        while start + 8 <= stop:
            size, name = struct.unpack_from(">I4s", data, start)
            end = start + size if size >= 8 else stop
            if end > stop:
                break
            parts.append((start, end))
            lengths.append(Length(start, 4, "big"))
            if name in MP4_FOLDERS:
                pending.append((start + 8, end))
            elif name[:2] == b"st":  # tables: their number of entries, and the first of them
                lengths += [Length(place, 4, "big") for place in range(start + 12, min(end - 3, start + 28), 4)]
            start = end
    return Structure(tuple(parts), tuple(lengths))


def ebml(data: bytes) -> Structure:
    """Elements of Matroska and WebM."""
    parts, lengths, pending = [], [], [(0, len(data))]
    while pending:
        start, stop = pending.pop()
        while start + 2 <= stop and data[start]:
            wide = 9 - data[start].bit_length()
            place = start + wide
            if place >= stop or not data[place]:
                break
            count = 9 - data[place].bit_length()
            size = int.from_bytes(data[place : place + count], "big") & ((1 << 7 * count) - 1)
            end = place + count + size
            if size == (1 << 7 * count) - 1:  # of unknown length
                end = stop
            if end > stop:
                break
            parts.append((start, end))
            lengths.append(Length(place, count, "vint"))
            if int.from_bytes(data[start:place], "big") in EBML_FOLDERS:
                pending.append((place + count, end))
            start = end
    return Structure(tuple(parts), tuple(lengths))


def riff(data: bytes) -> Structure:
    """Chunks of AVI and WebP."""
    parts, lengths, pending = [], [], [(0, len(data))]
    while pending:
        start, stop = pending.pop()
        while start + 8 <= stop:
            name, size = struct.unpack_from("<4sI", data, start)
            end = min(start + 8 + size + size % 2, stop)
            parts.append((start, end))
            lengths.append(Length(start + 4, 4, "little"))
            if name in (b"RIFF", b"LIST"):
                pending.append((start + 12, end))
            start = end
    return Structure(tuple(parts), tuple(lengths))


def png(data: bytes) -> Structure:
    """Chunks; width and height count as lengths."""
    parts, lengths, start = [], [Length(16, 4, "big"), Length(20, 4, "big")], 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            break
        parts.append((start, end))
        lengths.append(Length(start, 4, "big"))
        start = end
    return Structure(tuple(parts), tuple(lengths))


def png_sums(data: bytes) -> bytes:
    """Chunk checksums made right."""
    out = bytearray(data)
    for start, end in png(data).parts:
        out[end - 4 : end] = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
    return bytes(out)


def jpeg(data: bytes) -> Structure:
    """Segments up to the picture."""
    parts, lengths, start = [], [], 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        parts.append((start, min(end, len(data))))
        lengths.append(Length(start + 2, 2, "big"))
        if data[start + 1] in range(0xC0, 0xC4):
            lengths += [Length(start + 5, 2, "big"), Length(start + 7, 2, "big")]
        start = end
    return Structure(tuple(parts), tuple(lengths))


def gif(data: bytes) -> Structure:
    """Sizes of the screen and of frames."""
    frames = [place for place in range(len(data) - 10) if data[place : place + 5] == b",\0\0\0\0"]
    lengths = [Length(place, 2, "little") for place in (6, 8)]
    lengths += [Length(place + shift, 2, "little") for place in frames for shift in (1, 3, 5, 7)]
    return Structure(tuple(zip(frames, [*frames[1:], len(data)], strict=False)), tuple(lengths))


def tar_headers(data: bytes) -> list[int]:
    """Where blocks with tar's magic word begin."""
    return [start for start in range(0, len(data) - BLOCK + 1, BLOCK) if data[start + 257 : start + 262] == b"ustar"]


def tar(data: bytes) -> Structure:
    """Members; of the fields of headers the size and those that decide what a member is."""
    heads = tar_headers(data)
    ends = [*heads[1:], len(data)]
    lengths = [
        Length(head + place, size, "octal") for head in heads for place, size in ((124, 12), (124, 12), (136, 12))
    ]
    return Structure(tuple(zip(heads, ends, strict=False)), tuple(lengths))


def tar_sums(data: bytes) -> bytes:
    """Header checksums made right."""
    out = bytearray(data)
    for head in tar_headers(data):
        block = out[head : head + BLOCK]
        block[148:156] = b" " * 8
        out[head + 148 : head + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def archive(data: bytes) -> Structure:
    """A ZIP: local headers with their content, sizes and places in both kinds of header."""
    parts, lengths = [], []
    for mark, fields in ((b"PK\3\4", ((18, 4), (22, 4), (26, 2), (28, 2))), (b"PK\1\2", ((20, 4), (24, 4), (42, 4)))):
        start = data.find(mark)
        while start >= 0:
            following = data.find(mark, start + 4)
            parts.append((start, following if following >= 0 else len(data)))
            lengths += [
                Length(start + place, size, "little") for place, size in fields if start + place + size < len(data)
            ]
            start = following
    return Structure(tuple(parts), tuple(lengths))


def archive_sums(data: bytes) -> bytes:
    """CRCs of stored members made right, as far as the table of contents can be followed."""
    out = bytearray(data)
    with contextlib.suppress(struct.error):
        place = data.find(b"PK\1\2")
        while place >= 0:
            size, at = struct.unpack_from("<I", data, place + 20)[0], struct.unpack_from("<I", data, place + 42)[0]
            name, extra = struct.unpack_from("<HH", data, at + 26)
            content = data[at + 30 + name + extra :][:size]
            for where in (place + 16, at + 14):
                if where + 4 <= len(out):
                    out[where : where + 4] = zlib.crc32(content).to_bytes(4, "little")
            # a descriptor after the content, which torch writes, has it again
            if data[at + 30 + name + extra + size :][:4] == b"PK\7\x08":
                where = at + 34 + name + extra + size
                out[where : where + 4] = zlib.crc32(content).to_bytes(4, "little")
            place = data.find(b"PK\1\2", place + 4)
    return bytes(out)


def pickled(data: bytes) -> Structure:
    """Operations of a pickle."""
    places: list[int] = []
    with contextlib.suppress(Exception):  # a damaged one: as far as it goes
        places += (place for _, _, place in pickletools.genops(io.BytesIO(data)) if place is not None)
    ends = [*places[1:], len(data)]
    return Structure(tuple(zip(places, ends, strict=False)), tuple(Length(p + 1, 4, "little") for p in places[:-1]))


def safetensors(data: bytes) -> Structure:
    """The length of the header, and the header beside the numbers."""
    size = min(int.from_bytes(data[:8], "little"), len(data) - 8)
    return Structure(((8, 8 + size), (8 + size, len(data))), (Length(0, 8, "little"),))


def footed(data: bytes) -> Structure:
    """Parquet and Arrow files end with the length of their footer and a magic word."""
    magic = 4 if data[-4:] == b"PAR1" else 6
    place = len(data) - magic - 4
    size = min(max(int.from_bytes(data[place : place + 4], "little"), 0), max(place, 0))
    words = range(max(place - size, 0) // 4 * 4, max(place, 0), 4)  # flatbuffers count in words
    return Structure(
        ((0, place - size), (place - size, place), (place, len(data))),
        (*(Length(max(place, 0), 4, "little") for _ in range(8)), *(Length(word, 4, "little") for word in words)),
    )


def lines(data: bytes) -> Structure:
    """Lines of a text."""
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    starts = [0, *ends]
    return Structure(tuple(zip(starts, [*ends, len(data)], strict=True)))


def same(data: bytes) -> bytes:
    """No checksums to make right."""
    return data


STRUCTURES: dict[str, tuple[Callable[[bytes], Structure], Callable[[bytes], bytes]]] = {
    "mp4": (mp4, same), "ebml": (ebml, same), "riff": (riff, same), "gif": (gif, same), "png": (png, png_sums),
    "jpeg": (jpeg, same), "tar": (tar, tar_sums), "zip": (archive, archive_sums), "pickle": (pickled, same),
    "safetensors": (safetensors, same), "footed": (footed, same), "text": (lines, same),
}  # fmt: skip
