"""Readers of a text of three lines that fail in every way there is, each on some damage."""

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from vidlab.errors import DataError

from ..edits import Edit, cut
from ..target import Found, Subject, Target

GOOD = b"one\ntwo\nthree\n"


def in_a_word(random: Random, data: bytes) -> tuple[bytes, str]:
    return data.replace(b"w", b"v"), "another letter"


def make(folder: Path, edit: Edit = cut) -> Sequence[Subject]:
    (folder / "list.txt").write_bytes(GOOD)
    return [Subject("list.txt", edits=(edit,))]


def reader(fail: Callable[[bytes], None], careful: bool = True) -> Callable[[Path], Found]:
    def read(folder: Path) -> Found:
        data = (folder / "list.txt").read_bytes()
        if data != GOOD:
            fail(data)
        lines = data.split(b"\n")[:-1]
        return Found({str(n): repr(line) for n, line in enumerate(lines)}, ["changed"] if careful else [])

    return read


def refuse(data: bytes) -> None:
    raise DataError("list.txt is not what it was")


def stumble(data: bytes) -> None:
    data[10**9]


def sleep(data: bytes) -> None:
    time.sleep(600)


def crash(data: bytes) -> None:
    ctypes.string_at(0)


def swell(data: bytes) -> None:
    bytearray(900 << 20)[:: 1 << 12] = b"x" * (900 << 8)


def nothing(data: bytes) -> None:
    pass


TARGETS = (
    Target("broken.none", make, reader(refuse)),
    Target("broken.traceback", make, reader(stumble)),
    Target("broken.hang", make, reader(sleep)),
    Target("broken.crash", make, reader(crash)),
    Target("broken.memory", make, reader(swell)),
    Target("broken.lost", make, reader(nothing, careful=False)),
    Target("broken.altered", lambda folder: make(folder, in_a_word), reader(nothing, careful=False), exact=True),
)
