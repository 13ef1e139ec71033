"""The form of cached clips on disk."""

import io
import pickle
import random
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vidlab.data.dataset import stack_encoded
from vidlab.data.storage.latent_cache import (
    COLUMNS,
    FORMAT,
    CachedClip,
    CacheHeader,
    ClipCache,
    array_bytes,
    array_from,
    differences,
    read_parts,
)
from vidlab.errors import CorruptClipError, DataError, UserError


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def latent(seed: int = 0, moments: int = 2) -> torch.Tensor:
    return torch.randn(moments, 3, 2, 4, 5, generator=torch.Generator().manual_seed(seed)).bfloat16()


def text(length: int, width: int = 6) -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.randn(length, width).bfloat16(),
        "mask": torch.ones(length, dtype=torch.bool),
        "pooled": torch.randn(width).bfloat16(),
    }


def tar_of(members: dict[str, bytes]) -> bytes:
    """Members one after the other, without the end of an archive."""
    content = b""
    for name, data in members.items():
        info = tarfile.TarInfo(f"0000000000.{name}")
        info.size = len(data)
        content += info.tobuf() + data + bytes(-len(data) % 512)
    return content


def test_bfloat16_is_stored_as_its_bits():
    values = torch.tensor([1.0, -2.0, 3.0e38, 1e-40, float("inf")]).bfloat16()
    content = array_bytes(values)
    stored = np.load(io.BytesIO(content))
    # sign, 8 bits of exponent biased by 127, 7 bits of fraction
    assert stored.dtype == np.uint16 and stored[:2].tolist() == [127 << 7, 1 << 15 | 128 << 7]
    assert torch.equal(array_from(content, "<u2", 1).view(torch.bfloat16), values)


def test_what_is_written_is_read():
    parts = {"latent": latent(), **text(3)}
    members = {f"{name}.npy": array_bytes(tensor) for name, tensor in parts.items()}
    read = read_parts(tar_of({"json": b"{}", **members}))
    assert set(read) == set(parts) and all(torch.equal(read[name], parts[name]) for name in parts)
    assert set(read_parts(tar_of({"latent.npy": members["latent.npy"]}))) == {"latent"}


def bad_arrays(path: Path) -> dict[str, bytes]:
    def saved(array: np.ndarray, **settings) -> bytes:
        file = io.BytesIO()
        np.save(file, array, **settings)
        return file.getvalue()

    huge = array_bytes(latent()).replace(b"(2, 3, 2, 4, 5)", b"(9999999, 99, 9, 9, 9)")
    return {
        "pickled objects": saved(np.array([[[[[Hostile(path)]]]]], dtype=object), allow_pickle=True),
        "a bare pickle": pickle.dumps(Hostile(path)),
        "another type": saved(np.zeros((1, 3, 2, 4, 5), np.float32)),
        "other axes": saved(np.zeros((3, 2, 4, 5), np.uint16)),
        "Fortran order": saved(np.asfortranarray(np.zeros((1, 3, 2, 4, 5), np.uint16))),
        "cut off": array_bytes(latent())[:-2],
        "too long": array_bytes(latent()) + b"  ",
        "a huge shape": huge,
        "a code in the header": array_bytes(latent()).replace(b"(2, 3, 2, 4, 5)", b"print('hostile')"[:15]),
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", bad_arrays(Path()))
def test_no_other_array_is_read_and_nothing_runs(tmp_path, kind):
    content = bad_arrays(tmp_path / "hacked")[kind]
    with pytest.raises(ValueError):
        read_parts(tar_of({"latent.npy": content}))
    assert not (tmp_path / "hacked").exists()


def test_the_hostile_file_is_hostile(tmp_path):
    np.load(io.BytesIO(bad_arrays(tmp_path / "hacked")["pickled objects"]), allow_pickle=True)
    assert (tmp_path / "hacked").exists()


def test_incomplete_clips_are_refused():
    tokens = array_bytes(text(2)["tokens"])
    with pytest.raises(ValueError, match=r"it has \[\]"):
        read_parts(tar_of({"json": b"{}"}))
    with pytest.raises(ValueError, match=r"it has \['latent', 'tokens'\]"):
        read_parts(tar_of({"latent.npy": array_bytes(latent()), "tokens.npy": tokens}))


def write_cache(folder: Path, content: bytes, **row) -> Path:
    """A cache of one clip."""
    header = CacheHeader({"format": FORMAT}, views=0, clips=1, clips_per_shard=1)
    (folder / "cache.json").write_text(header.text())
    (folder / "000000.tar").write_bytes(content)
    numbers = dict.fromkeys(COLUMNS, 0) | {"key": "one", "shard": "000000.tar", "size": len(content), "error": None,
                                        "crc": None}  # fmt: skip
    pq.write_table(pa.table({name: [value] for name, value in (numbers | row).items()}), folder / "index.parquet")
    return folder


def test_a_clip_is_read_by_its_place_in_the_index(tmp_path):
    stored = latent()
    folder = write_cache(
        tmp_path, tar_of({"latent.npy": array_bytes(stored)}), frames=4, height=8, width=12, stride=2, crop_left=3,
        caption=1,
    )  # fmt: skip
    clip = ClipCache(folder).read(0, 0)
    assert torch.equal(clip.moments, stored) and clip.text is None
    assert (clip.size, clip.stride, clip.crop, clip.caption) == ((4, 8, 12), 2, (0, 3), 1)


def test_a_damaged_shard_names_itself_and_the_way_out(tmp_path):
    folder = write_cache(tmp_path, tar_of({"latent.npy": bad_arrays(tmp_path / "hacked")["pickled objects"]}))
    with pytest.raises(DataError, match=r"000000.tar is damaged at clip one .*Delete this file and index.parquet"):
        ClipCache(folder).read(0, 0)
    assert not (tmp_path / "hacked").exists()
    (folder / "000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"000000.tar is damaged .*cut off, 0 of"):
        ClipCache(folder).read(0, 0)
    (folder / "000000.tar").write_bytes(bytes(99_999))
    with pytest.raises(DataError, match=r"000000.tar is damaged"):
        ClipCache(folder).read(0, 0)


def test_arrays_are_those_that_were_written(tmp_path):
    """Every wrong bit of an array is found, and one of an earlier version that makes numbers infinite or NaN."""
    stored, draw = latent(), random.Random(0)
    array = array_bytes(stored)
    content = tar_of({"json": b"{}", "latent.npy": array})
    cache = ClipCache(write_cache(tmp_path, content, crc=zlib.crc32(array)))
    assert torch.equal(cache.read(0, 0).moments, stored)
    start = content.index(array)
    for bit in draw.sample(range(8 * len(array)), 60):
        bad = bytearray(content)
        bad[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "000000.tar").write_bytes(bad)
        with pytest.raises(DataError, match=r"000000.tar is damaged at clip one .* run the same curate.py command"):
            cache.read(0, 0)
    stored[0, 0, 0, 0, 0] = float("nan")
    older = ClipCache(write_cache(tmp_path, tar_of({"latent.npy": array_bytes(stored)})))
    with pytest.raises(DataError, match=r"damaged at clip one .its latent holds numbers that are not finite"):
        older.read(0, 0)


def test_a_clip_that_could_not_be_encoded_says_why(tmp_path):
    folder = write_cache(tmp_path, b"", error="no video stream")
    with pytest.raises(CorruptClipError, match="no video stream"):
        ClipCache(folder).read(0, 0)


def test_indices_of_something_else(tmp_path):
    folder = write_cache(tmp_path, b"")
    (folder / "cache.json").write_text(CacheHeader({"format": FORMAT}, views=2, clips=1, clips_per_shard=1).text())
    with pytest.raises(UserError, match="is not the index of this cache"):
        ClipCache(folder)
    (folder / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"index.parquet cannot be read"):
        ClipCache(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match="is not finished"):
        ClipCache(folder)


def clip_of(moments: int, length: int | None) -> CachedClip:
    return CachedClip(latent(moments=moments), None if length is None else text(length), (4, 8, 10), 1, (0, 0), 0)


def test_a_batch_pads_captions(tmp_path):
    clips = [clip_of(2, 3), clip_of(2, 1)]
    batch = stack_encoded(clips)
    assert batch.size == (4, 8, 10) and batch.text is not None
    assert torch.equal(batch.mean[1], clips[1].moments[0]) and torch.equal(batch.log_variance[0], clips[0].moments[1])
    assert batch.text.mask.tolist() == [[True] * 3, [True, False, False]] and (batch.text.tokens[1, 1:] == 0).all()
    assert torch.equal(batch.text.pooled[1], clips[1].text["pooled"])
    plain = stack_encoded([clip_of(1, None)])
    assert plain.log_variance is None and plain.text is None


def test_differences_name_what_is_absent():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}) == [
        "b: 2 in the cache, 3 in this run",
        "c: absent in the cache, None in this run",
    ]
    assert differences({"a": [1]}, {"a": [1]}) == []


def test_headers_of_caches_come_back(tmp_path):
    header = CacheHeader({"format": FORMAT, "z": 0.1}, views=3, clips=7, clips_per_shard=4)
    (tmp_path / "cache.json").write_text(header.text())
    assert CacheHeader.read(tmp_path) == header and header.total == 21
    assert header.shards == 6 and [header.clips_in(n) for n in range(6)] == [4] * 5 + [1]


def test_a_header_of_negative_size_ends_reading(tmp_path):
    """``tarfile`` goes backwards by it, for ever."""
    info = tarfile.TarInfo("0000000000.latent.npy")
    info.size = -1024
    with pytest.raises(ValueError, match="a header says -1024 bytes"):
        read_parts(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="header is damaged"):
        read_parts(b"no tar " * 200)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offset": None}, ""),
        ({"offset": -512}, "cut off"),
        ({"size": 2**62}, "cut off"),
        ({"frames": -1}, "frames=-1"),
        ({"caption": None}, "caption=None"),
        ({"shard": "\0"}, "null byte"),
        ({"shard": "gone\x1b.tar"}, r"gone\\x1b\.tar"),
    ],
)
def test_odd_rows_of_its_index_are_named_by_clip(tmp_path, change, said):
    cache = ClipCache(write_cache(tmp_path, tar_of({"latent.npy": array_bytes(latent())})))
    for name, value in change.items():
        place = cache.table.column_names.index(name)
        column = pa.array([value, *cache.table.column(name).to_pylist()[1:]], cache.table.schema.field(name).type)
        cache.table = cache.table.set_column(place, name, column)
    with pytest.raises(DataError, match=rf"is damaged at clip one \(.*{said}"):
        cache.read(0, 0)


def test_clips_that_cannot_be_stacked_are_named(tmp_path):
    """All clips of one size have arrays of one shape; the same file in the place of another may not."""
    one = tar_of({"latent.npy": array_bytes(latent()[:, :2].contiguous())})
    cache = ClipCache(write_cache(tmp_path, tar_of({"latent.npy": array_bytes(latent())})))
    assert cache.read(0, 0).moments.shape == (2, 3, 2, 4, 5)
    (tmp_path / "000000.tar").write_bytes(one + bytes(4096))
    size = cache.table.column_names.index("size")
    cache.table = cache.table.set_column(size, "size", pa.array([len(one)] * len(cache.table), pa.int64()))
    with pytest.raises(DataError, match=r"damaged at clip one \(its arrays have shapes .*2, 2, 2, 4, 5"):
        cache.read(0, 0)
    wrong = {
        "latent.npy": array_bytes(latent()),
        **{f"{name}.npy": array_bytes(part) for name, part in text(3).items()},
    }
    wrong["mask.npy"] = array_bytes(torch.ones(2, dtype=torch.bool))
    shard = tar_of(wrong)
    cache = ClipCache(write_cache(tmp_path, shard))
    with pytest.raises(DataError, match=r"3 tokens and a mask of 2"):
        cache.read(0, 0)
