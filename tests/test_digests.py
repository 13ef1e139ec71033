"""Damage is found: of zip archives and JSON objects."""

import random
import struct
import zipfile
import zlib

import pytest
import torch

from vidlab.digests import SEAL, DamagedError, check_archive, checksum, sealed, unsealed

PLAIN = b'{"width":8}'  # keys sorted, no spaces


def test_parts_are_summed_as_one():
    # the check value of CRC-32 that its definitions give for these nine digits
    assert checksum([b"123456789"]) == checksum([b"1234", memoryview(b"56789")]) == 0xCBF43926


def test_a_sealed_object_comes_back_and_a_changed_one_does_not():
    content = {"width": 8, "scale": [0.1, 1e-9], "name": "ü"}
    whole = sealed(content)
    assert unsealed(whole) == content and unsealed(dict(reversed(whole.items()))) == content
    assert sealed({"width": 8})[SEAL] == f"{zlib.crc32(PLAIN):08x}"
    assert unsealed(content) == content  # of another program
    with pytest.raises(DamagedError, match="delete the entries _checked and _crc32"):
        unsealed(whole | {"width": 9})
    with pytest.raises(DamagedError):  # neither does one whose checksum goes by another name
        unsealed({name.replace(SEAL, "_crc33"): value for name, value in whole.items()} | {"width": 9})


@pytest.fixture
def archive(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"w": torch.arange(64.0)}, file)
    return file


def test_every_wrong_bit_of_a_record_is_found(archive):
    check_archive(archive)
    with zipfile.ZipFile(archive) as found:
        records = {record.filename: record for record in found.infolist()}
    record = records["weights/data/0"]
    good = archive.read_bytes()
    start = good.index(struct.pack("<64f", *range(64)))
    assert record.file_size == 256
    for bit in random.Random(0).sample(range(256 * 8), 60):
        bad = bytearray(good)
        bad[start + bit // 8] ^= 1 << bit % 8
        archive.write_bytes(bad)
        with pytest.raises(DamagedError, match="record 'weights/data/0'"):
            check_archive(archive)
        check_archive(archive, "/data.pkl")  # only what was asked for


def test_a_record_elsewhere_or_packed_otherwise_is_found(archive):
    good = archive.read_bytes()
    bad = bytearray(good)
    bad[28] ^= 1  # the length of the first record's extra field, which says where its bytes begin
    archive.write_bytes(bad)
    with pytest.raises(DamagedError, match="is not the one"):
        check_archive(archive)
    bad = bytearray(good)
    bad[good.index(b"PK\1\2") + 38] = 0x10  # the first record is a folder: torch would read nothing of it
    archive.write_bytes(bad)
    with pytest.raises(DamagedError, match="is not the one"):
        check_archive(archive)
    archive.write_bytes(b"no archive: left to its reader")
    check_archive(archive)
    archive.write_bytes(good[:-1])
    with pytest.raises(DamagedError, match="cut off"):
        check_archive(archive)
