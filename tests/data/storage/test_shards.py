import json
import os
import random
import resource
import tarfile
import zlib

import numpy as np
import pytest
import webdataset

from vidlab.assets import cache_folder
from vidlab.data.clip_reader import ClipReader
from vidlab.data.clip_transform import ClipTransform
from vidlab.data.datasets.base import prepare_once
from vidlab.data.moving_shapes import MovingShapes
from vidlab.data.samplers.plan import ClipRef
from vidlab.data.storage import shards
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.shards import ShardWriter, open_member, read_member
from vidlab.data.video import VideoInfo, encode, read_frames
from vidlab.errors import CorruptClipError, DataError
from vidlab.lab.cli.error_messages import explain

INFO = VideoInfo(2, 8, 8, 8.0, 0.25)


def videos(count: int) -> list[bytes]:
    return [encode(np.full((2, 8, 8, 3), 20 * n, np.uint8), 8, lossless=True) for n in range(count)]


def write(folder, clips: list[bytes], clips_per_shard: int = 2) -> ClipIndex:
    with ShardWriter(folder, clips_per_shard, {"made": "here"}) as writer:
        for number, video in enumerate(clips):
            writer.add(
                f"clip_{number}",
                video,
                INFO,
                [f"text {number}", "more"],
                "train" if number else "val",
                "film",
            )
    return ClipIndex.open(folder)


def test_every_member_is_found_by_offset(tmp_path):
    clips = videos(5)
    index = write(tmp_path, clips)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["000000.tar", "000001.tar", "000002.tar"]
    assert index.column("shard") == ["000000.tar"] * 2 + ["000001.tar"] * 2 + ["000002.tar"]
    assert index.column("split") == ["val"] + ["train"] * 4
    for number, video in enumerate(clips):
        row = index.row(number)
        assert read_member(index.root, row.shard, row.offset, row.size) == video
        assert (row.key, row.captions, row.source) == (f"clip_{number}", (f"text {number}", "more"), "film")
        assert (row.frames, row.height, row.width, row.fps, row.duration) == (2, 8, 8, 8.0, 0.25)
    assert index.metadata == {"made": "here"}


def test_bytes_of_a_clip_are_those_that_were_written(tmp_path):
    """Decoders show wrong bits as other pixels. An index that knows no checksum, as of an earlier version, has none."""
    (video,) = videos(1)
    row = write(tmp_path, [video]).row(0)
    place = (tmp_path, row.shard, row.offset, row.size, row.key)
    assert row.crc == zlib.crc32(video) and read_member(*place, row.crc) == open_member(*place, row.crc) == video
    shard = tmp_path / row.shard
    good = shard.read_bytes()
    for bit in random.Random(0).sample(range(8 * row.size), 40):
        bad = bytearray(good)
        bad[row.offset + bit // 8] ^= 1 << bit % 8
        shard.write_bytes(bad)
        for read in (read_member, open_member):
            with pytest.raises(CorruptClipError, match=r"000000.tar: damaged, .* it is made again"):
                read(*place, row.crc)
        assert len(read_member(*place)) == row.size
    reader = ClipReader(ClipIndex.open(tmp_path), ClipTransform(2, 8, 8), 0)
    with pytest.raises(CorruptClipError, match="damaged"):
        reader.load(row, ClipRef(0, 0), reader.view)


def test_webdataset_reads_the_shards(tmp_path):
    clips = videos(3)
    write(tmp_path, clips, clips_per_shard=8)
    samples = list(webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["clip_0", "clip_1", "clip_2"]
    assert samples[1]["mp4"] == clips[1] and samples[1]["txt"] == b"text 1"
    record = json.loads(samples[0]["json"])
    assert record["captions"] == ["text 0", "more"] and record["split"] == "val" and record["fps"] == 8.0


def test_equal_clips_give_equal_bytes(tmp_path):
    clips = videos(3)
    hashes = {write(tmp_path / name, clips).hash for name in ("a", "b")}
    assert len(hashes) == 1
    for shard in ("000000.tar", "000001.tar"):
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_an_interrupted_writer_leaves_no_index_and_the_next_starts_over(tmp_path):
    clips = videos(5)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, 2) as writer:
        for number, video in enumerate(clips):
            writer.add(f"old_{number}", video, INFO, ["text"])
        raise KeyboardInterrupt
    assert not (tmp_path / "index.parquet").exists()
    assert write(tmp_path, clips[:1]).column("key") == ["clip_0"]
    assert [path.name for path in tmp_path.glob("*.tar")] == ["000000.tar"]


def test_a_finished_data_set_is_not_written_over(tmp_path):
    write(tmp_path, videos(1))
    with pytest.raises(DataError, match="already holds a finished data set"), ShardWriter(tmp_path):
        pass
    assert len(ClipIndex.open(tmp_path)) == 1


@pytest.mark.parametrize(
    ("key", "captions", "split", "reason"),
    [
        ("a.b", ["text"], "train", "a.b"),
        ("a/b", ["text"], "train", "a/b"),
        ("", ["text"], "train", "not empty"),
        ("first", ["text"], "train", "must be new"),
        ("ok", [], "train", "no caption"),
        ("ok", ["text", ""], "train", "no caption"),
        ("ok", ["text"], "validation", "train, val, test"),
    ],
)
def test_clips_that_cannot_be_stored_are_refused(tmp_path, key, captions, split, reason):
    with pytest.raises(DataError, match=reason), ShardWriter(tmp_path) as writer:
        writer.add("first", b"bytes", INFO, ["text"])
        writer.add(key, b"bytes", INFO, captions, split)
    assert not (tmp_path / "index.parquet").exists()


def test_missing_and_shortened_shards_are_corrupt_clips(tmp_path):
    index = write(tmp_path, videos(2))
    row = index.row(1)
    shard = tmp_path / row.shard
    with tarfile.open(shard) as tar:
        assert tar.getmember("clip_1.mp4").offset_data == row.offset
    shard.write_bytes(shard.read_bytes()[: row.offset + 10])
    with pytest.raises(CorruptClipError, match=rf"000000.tar: cut off, 10 of {row.size} bytes"):
        read_member(tmp_path, row.shard, row.offset, row.size)
    with pytest.raises(CorruptClipError, match=r"000007.tar: No such file"):
        read_member(tmp_path, "000007.tar", 0, 1)


def test_prepare_once_builds_once_and_again_after_a_failure(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise DataError("disk full")
        write(folder, videos(1))

    target = tmp_path / "deep" / "set"
    with pytest.raises(DataError, match="disk full"):
        prepare_once(target, build)
    assert prepare_once(target, build) == prepare_once(target, build) == target
    assert len(calls) == 2
    row = ClipIndex.open(target).row(0)
    assert read_frames(read_member(target, row.shard, row.offset, row.size)).shape == (2, 8, 8, 3)


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("VIDLAB_CACHE")
    assert cache_folder().name == "vidlab"


@pytest.mark.parametrize("offset", [-512, -(2**63), 2**62, 2**80, 0])
@pytest.mark.parametrize("size", [-1, 2**40, 2**63, 2**80])
def test_places_that_no_file_has_are_a_corrupt_clip(tmp_path, offset, size):
    """An index may say anything; nothing of that size is allocated."""
    (tmp_path / "a.tar").write_bytes(bytes(2048))
    for read in (read_member, open_member):
        with pytest.raises(CorruptClipError, match=r"a\.tar: cut off, \d+ of -?\d+ bytes at offset"):
            read(tmp_path, "a.tar", offset, size, "key")


def test_what_is_no_file_is_a_corrupt_clip(tmp_path):
    """Reading a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for name, said in (("pipe.tar", "this is no file"), ("folder.tar", "this is no file"), ("a\0.tar", "null byte")):
        for size in (10, 2**21):
            with pytest.raises(CorruptClipError, match=said):
                open_member(tmp_path, name, 0, size)


def test_members_of_8_gib_are_not_taken_for_others(tmp_path, monkeypatch):
    """Their size stands in an extended header, and Linux gives 2 GiB at a time; here 8 and 5 bytes stand for those."""
    info = tarfile.TarInfo("big.mp4")
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"0123456789ab")
    monkeypatch.setattr(shards, "LARGEST_SIZE", 8)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, count, offset: pread(handle, min(count, 5), offset))
    assert read_member(tmp_path, "a.tar", 512, 12, "big") == b"0123456789ab"
    with pytest.raises(CorruptClipError, match="do not belong together"):
        read_member(tmp_path, "a.tar", 512, 7, "big")
    with pytest.raises(CorruptClipError, match="do not belong together"):
        read_member(tmp_path, "a.tar", 512, 12, "other")


def test_text_that_no_index_holds_is_refused(tmp_path):
    with pytest.raises(DataError, match="valid Unicode"), ShardWriter(tmp_path) as writer:
        writer.add("first", b"bytes", INFO, ["half \ud83d of a pair"])


def test_a_disk_without_room_is_named_with_the_file(tmp_path):
    """Files may grow to 4 KiB, as on a disk that fills: a shard of three clips takes more."""
    source = MovingShapes(frames=4, height=16, width=16, train_clips=2, val_clips=1, cache_dir=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError) as caught:
            source.prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert explain(caught.value).startswith(
        f"{source.folder / '000000.tar'}: the file is larger than this machine allows"
    )
    assert not (source.folder / "index.parquet").exists()
    source.prepare()  # with room again
