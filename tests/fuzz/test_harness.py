"""Damage is repeatable and goes where it should, and what comes out is judged rightly."""

import io
import tarfile
import zipfile
import zlib
from random import Random

import pytest

from .edits import EDITS
from .structure import STRUCTURES
from .target import Found, Subject, Target, compare, damage
from .targets.broken import GOOD, make


def test_a_case_is_the_same_again_and_steps_can_be_left_out(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    subjects = make(good)
    for case in range(40):
        _, steps = damage("name", case, good, bad, subjects)
        first = (bad / "list.txt").read_bytes()
        _, again = damage("name", case, good, bad, subjects)
        assert again == steps and (bad / "list.txt").read_bytes() == first
        _, kept = damage("name", case, good, bad, subjects, keep=[0])
        assert kept == steps[:1]
    assert (good / "list.txt").read_bytes() == GOOD


ONE = Subject("f", items=frozenset("a"))


@pytest.mark.parametrize(
    ("subject", "exact", "items", "said", "outcome"),
    [
        (ONE, False, {"a": "1", "b": "2"}, [], "good"),
        (ONE, False, {"a": "3", "b": "2"}, [], "changed"),
        (ONE, True, {"a": "3", "b": "2"}, [], "altered"),
        (ONE, False, {"b": "2"}, ["a: cut off"], "named"),
        (ONE, False, {"b": "2"}, [], "lost"),
        (ONE, False, {"a": "1"}, ["a: cut off"], "spread"),
        (ONE, False, {"a": "1", "b": "3"}, [], "spread"),
        (Subject("f"), False, {"c": "1", "b": "2"}, [], "changed"),
        (Subject("f", countable=False), False, {"b": "2"}, [], "changed"),
    ],
)
def test_what_comes_out_is_judged(subject, exact, items, said, outcome):
    target = Target("t", make, lambda folder: Found({}), exact)
    assert compare(target, Found({"a": "1", "b": "2"}), subject, Found(items, said)).outcome == outcome


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in "ab":
                member = tarfile.TarInfo(name)
                member.size = 700
                tar.addfile(member, io.BytesIO(name.encode() * 700))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", b"a" * 700)
            archive.writestr("b", b"b" * 30)
    return file.getvalue()


def test_parts_and_lengths_of_a_tar_and_a_zip():
    tar, archive = STRUCTURES["tar"][0](packed("tar")), STRUCTURES["zip"][0](packed("zip"))
    assert tar.parts[0] == (0, 512 + 1024)
    assert {one.offset for one in tar.lengths} == {124, 136, 1536 + 124, 1536 + 136}
    assert archive.parts[0] == (0, 30 + 1 + 700)
    assert 18 in {one.offset for one in archive.lengths}


def test_checksums_are_made_right():
    data = bytearray(packed("tar"))
    data[0] = ord("c")
    with pytest.raises(tarfile.TarError):
        tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
    with tarfile.open(fileobj=io.BytesIO(STRUCTURES["tar"][1](bytes(data)))) as tar:
        assert tar.getnames() == ["c", "b"]
    data = bytearray(packed("zip"))
    data[40] = ord("x")
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        zipfile.ZipFile(io.BytesIO(bytes(data))).read("a")
    with zipfile.ZipFile(io.BytesIO(STRUCTURES["zip"][1](bytes(data)))) as archive:
        assert zlib.crc32(archive.read("a")) == archive.getinfo("a").CRC and b"x" in archive.read("a")


@pytest.mark.parametrize("name", EDITS)
def test_edits_take_any_bytes(name):
    """Damage to damage: no edit relies on the format being sound."""
    for seed, data in enumerate(
        (b"x", b"PK\3\4", b"\0" * 600, Random(0).randbytes(2000), packed("tar"), packed("zip"))
    ):
        for edit in EDITS[name]:
            for again in range(5):
                changed, said = edit(Random(100 * again + seed), data)
                assert isinstance(changed, bytes) and said
