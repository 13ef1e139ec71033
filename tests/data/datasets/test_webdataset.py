"""Shards made by others: indexed where they are, the same as a plain webdataset reader streams them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from vidlab.data.datasets import webdataset as tar_source
from vidlab.data.datasets.webdataset import TarShards, find_shards
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex, ClipRow
from vidlab.data.storage.shards import ShardWriter, read_member
from vidlab.data.storage.tar_headers import BLOCK, Damage, Member, read_headers
from vidlab.data.storage.tar_scan import ShardContent, scan_shard
from vidlab.data.storage.tar_shards import split_name
from vidlab.data.video import DecodeLimits, VideoInfo, encode
from vidlab.errors import DataError, UserError

LONG_NAME = "folder/" + "x" * 120  # needs an extended header


def video(level: int, frames: int = 9) -> bytes:
    return encode(np.full((frames, 16, 24, 3), level, np.uint8), fps=8)


CLIPS = [video(20 * level) for level in range(6)]


def write_tar(path: Path, members: dict[str, bytes], **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1234.5  # webdataset writes a fraction, which is an extended header
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards in the ways that people write them."""
    folder = tmp_path / "in"
    write_tar(
        folder / "a/00000.tar",
        {
            "000000000.mp4": CLIPS[0], "000000000.txt": b"first\n\n second  line\n", "000000000.json": b'{"key": 1}',
            "000000001.json": json.dumps({"caption": "from json", "scores": {"motion": 2, "tag": "x"}}).encode(),
            "000000001.MP4": CLIPS[1],
            "__meta__.json": b"{}",
            "sub/dir.v2/two.video.mp4": CLIPS[2], "sub/dir.v2/two.txt": b"two",
        },
    )  # fmt: skip
    write_tar(
        folder / "00001.tar",
        {
            f"{LONG_NAME}.mp4": CLIPS[3], f"{LONG_NAME}.txt": b"long name",
            "no_caption.mp4": CLIPS[4], "no_video.txt": b"alone",
            "own.mp4": CLIPS[5], "own.txt": b"not this",
            "own.json": json.dumps({"captions": ["this", "and this"], "split": "val", "source": "film"}).encode(),
        },
        format=tarfile.PAX_FORMAT,
    )  # fmt: skip
    return folder


def source(folder: Path, **settings) -> TarShards:
    return TarShards(str(folder), cache_dir=str(folder.parent / "cache"), **settings)


def rows_of(index: ClipIndex) -> dict[str, ClipRow]:
    return {index.row(n).key: index.row(n) for n in range(len(index))}


def test_shards_are_indexed_where_they_are(folder, caplog):
    index = ClipIndex.open(source(folder).prepare())
    rows = rows_of(index)
    assert {key: row.captions for key, row in rows.items()} == {
        "a/00000/000000000": ("first", "second line"),
        "a/00000/000000001": ("from json",),
        "a/00000/sub/dir.v2/two": ("two",),
        f"00001/{LONG_NAME}": ("long name",),
        "00001/own": ("this", "and this"),
    }
    assert rows["a/00000/000000001"].scores == {"motion": 2.0} and rows["00001/own"].source == "film"
    one = rows["a/00000/000000000"]
    assert (one.shard, one.frames, one.height, one.width, one.fps) == ("a/00000.tar", 9, 16, 24, 8.0)
    assert index.metadata == {"shards": 2, "without_video": 2, "without_caption": 1, "rejected": {}}
    assert "1 samples without caption" in caplog.text and "2 samples without video" in caplog.text
    assert {row.split for row in rows.values()} == {"train", "val"} and index.root == folder
    assert not list((folder.parent / "cache").rglob("*.mp4")) and not list((folder.parent / "cache").rglob("*.tar"))


def test_webdataset_streams_the_same_clips(folder):
    index = ClipIndex.open(source(folder).prepare())
    by_index = {
        (row.shard, row.key.removeprefix(f"{row.shard.removesuffix('.tar')}/")): (
            read_member(index.root, row.shard, row.offset, row.size),
            row.captions,
        )
        for row in rows_of(index).values()
    }
    streamed = {}
    urls = [str(folder / "00001.tar"), str(folder / "a/00000.tar")]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        videos = [sample[suffix] for suffix in ("mp4", "video.mp4") if suffix in sample]
        record = json.loads(sample.get("json", b"{}"))
        lines = (" ".join(line.split()) for line in sample.get("txt", b"").decode().splitlines())
        captions = record.get("captions") or [line for line in lines if line] or [record.get("caption")]
        if videos and captions[0]:
            shard = Path(sample["__url__"]).relative_to(folder).as_posix()
            streamed[shard, sample["__key__"]] = (videos[0], tuple(captions))
    assert streamed == by_index and len(streamed) == 5


def test_shards_of_this_writer_give_the_same_clips(tmp_path):
    made = tmp_path / "made"
    with ShardWriter(made, 2) as writer:
        for number, clip in enumerate(CLIPS):
            info = VideoInfo(9, 16, 24, 8.0, 9 / 8)
            split = "val" if number == 4 else "train"
            writer.add(f"c{number}", clip, info, [f"text {number}", "more"], split, "film", scores={"motion": number})
    original, again = ClipIndex.open(made), ClipIndex.open(source(made).prepare())
    for number in range(6):
        one, other = original.row(number), again.row(number)
        assert other.key == f"{one.shard.removesuffix('.tar')}/{one.key}"
        for name in ("shard", "offset", "size", "frames", "captions", "split", "source", "scores", "fps"):
            assert getattr(other, name) == getattr(one, name)


def members(path: Path) -> list[str]:
    return [entry.name if isinstance(entry, Member) else entry.reason for entry in read_headers(path)]


def test_a_damaged_header_is_counted_and_the_rest_is_read(folder):
    path = write_tar(folder / "b.tar", {f"{n}.{s}": c for n in range(4) for s, c in (("mp4", CLIPS[n]), ("txt", b"t"))})
    with tarfile.open(path) as tar:
        start = tar.getmember("1.mp4").offset_data - BLOCK
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    (damage,) = [entry for entry in read_headers(path) if isinstance(entry, Damage)]
    assert damage.offset in (start, start - 2 * BLOCK)  # an extended header before it is part of the header
    assert members(path) == ["0.mp4", "0.txt", "a header is damaged", "1.txt", "2.mp4", "2.txt", "3.mp4", "3.txt"]
    index = ClipIndex.open(source(folder).prepare())
    assert [key for key in rows_of(index) if key.startswith("b/")] == ["b/0", "b/2", "b/3"]
    assert list(index.metadata["rejected"].values()) == ["a header is damaged"]


def test_a_cut_off_shard_keeps_its_whole_clips(folder):
    path = write_tar(folder / "b.tar", {f"{n}.{s}": c for n in range(3) for s, c in (("txt", b"t"), ("mp4", CLIPS[n]))})
    with tarfile.open(path) as tar:
        text, last = tar.getmember("2.txt"), tar.getmember("2.mp4")
    whole = path.read_bytes()
    cases = {
        last.offset_data + 10: "cut off: the shard ends",
        text.offset: "ends without tar's closing blocks",
        last.offset_data - BLOCK: "ends without tar's closing blocks",  # of an extended header its first half
    }
    for end, reason in cases.items():
        path.write_bytes(whole[:end])
        index = ClipIndex.open(source(folder).prepare())
        assert [key for key in rows_of(index) if key.startswith("b/")] == ["b/0", "b/1"]
        ((_, why),) = index.metadata["rejected"].items()
        assert reason in why


@pytest.mark.filterwarnings("ignore:data.frames")
def test_damage_counts_towards_max_corrupt(folder):
    bad = {"z.mp4": b"no video", "z.txt": b"words", "y.mp4": CLIPS[0], "y.json": b"{", "x.mp4": b"", "x.txt": b"empty"}
    write_tar(folder / "bad.tar", bad)
    settings = {"frames": 4, "height": 16, "width": 16, "num_workers": 0, "val_clips": 1, "batch_size": 2}
    module = ClipDataModule(source(folder), "shards", max_corrupt=3, **settings)
    batch = next(iter(module.train_dataloader()))
    assert batch.pixels.shape == (2, 3, 4, 16, 16)
    assert set(module.corrupt) == {"bad/z", "bad/y", "bad/x"}
    assert "is not JSON" in module.corrupt["bad/y"] and "empty" in module.corrupt["bad/x"]
    with pytest.raises(DataError, match=r"^3 of 8 clips of data=shards .*data\.max_corrupt=2 .*bad/z"):
        ClipDataModule(source(folder), "shards", max_corrupt=2, **settings).setup()


def test_a_key_twice_in_a_shard_is_rejected(folder):
    path = write_tar(folder / "b.tar", {"k.mp4": CLIPS[0], "k.txt": b"one"})
    with tarfile.open(path, "a") as tar:
        for name, content in (("l.txt", b"-"), ("k.mp4", CLIPS[1]), ("k.txt", b"two")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index = ClipIndex.open(source(folder).prepare())
    assert rows_of(index)["b/k"].captions == ("one",)
    assert list(index.metadata["rejected"].values()) == ["a second sample has the key 'k'"]


def test_the_index_follows_the_shards(folder):
    first = source(folder).prepare()
    assert source(folder).prepare() == first
    write_tar(folder / "c.tar", {"n.mp4": CLIPS[0], "n.txt": b"new"})
    second = source(folder).prepare()
    assert second != first and "c/n" in rows_of(ClipIndex.open(second))
    assert "c/n" not in rows_of(ClipIndex.open(source(folder, pattern="a/*.tar").prepare()))


@pytest.mark.parametrize("name", ["plain", "__meta__/a.txt", ".hidden", "a/.b.txt"])
def test_members_that_belong_to_no_sample(name):
    assert split_name(name) is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a/b.c.D", ("a/b", "c.d")), ("a.b/c.txt", ("a.b/c", "txt")), ("__a.txt", ("__a", "txt"))],
)
def test_keys_are_cut_as_webdataset_cuts_them(name, parts):
    from webdataset.tariterators import base_plus_ext

    assert split_name(name) == parts
    prefix, suffix = base_plus_ext(name)
    assert (prefix, suffix.lower()) == parts


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"data\.path is not set: give the folder of WebDataset shards"):
        TarShards(None).prepare()
    with pytest.raises(UserError, match=r"no such folder"):
        TarShards(str(tmp_path / "absent")).prepare()
    with pytest.raises(UserError, match=r"val_fraction=0"):
        TarShards(str(tmp_path), val_fraction=0).prepare()
    with pytest.raises(DataError, match=r"no shard found \(looked for \*\*/\*\.tar\).*gunzip"):
        TarShards(str(tmp_path)).prepare()
    write_tar(tmp_path / "in" / "a.tar", {"a.mp4": CLIPS[0], "a.txt": b"one", "b.mp4": b"x", "b.txt": b"two"})
    with pytest.raises(DataError, match=r"1 usable clips in 1 shards, and 2 are needed.*a/b: "):
        source(tmp_path / "in").prepare()


def test_a_folder_whose_name_is_not_utf8_is_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9" + b"x" * 240)
    write_tar(folder / "s.tar", {"a.mp4": CLIPS[0], "a.txt": b"a", "b.mp4": CLIPS[1], "b.txt": b"b"})
    index = ClipIndex.open(TarShards(str(folder), cache_dir=str(tmp_path / "cache")).prepare())
    assert set(rows_of(index)) == {"s/a", "s/b"}
    row = index.row(0)
    assert read_member(index.root, row.shard, row.offset, row.size, row.key) in CLIPS


def test_folders_behind_links_hold_shards_and_what_is_compressed_is_named(tmp_path, caplog):
    far, near = tmp_path / "far", tmp_path / "in"
    write_tar(far / "deep/a.tar", {"a.mp4": CLIPS[0], "a.txt": b"a"})
    write_tar(near / "B.TAR", {"b.mp4": CLIPS[1], "b.txt": b"b"})
    (near / "link").symlink_to(far)
    (near / "loop").symlink_to(near)
    (near / "c.tar.gz").write_bytes(b"\x1f\x8b")
    (near / "broken.tar").symlink_to(tmp_path / "nowhere")
    index = ClipIndex.open(source(near).prepare())
    assert set(rows_of(index)) == {"link/deep/a/a", "B/b"}
    assert index.metadata["rejected"] == {"broken.tar": "this is no file, or a link that leads to none"}
    assert "1 files like" in caplog.text and "c.tar.gz: compressed shards cannot be read" in caplog.text
    for row in rows_of(index).values():
        assert read_member(index.root, row.shard, row.offset, row.size, row.key) in CLIPS


def test_patterns(tmp_path):
    files = ("a/b/x.tar", "a/y.tar", "z.tar", "a/b/n.txt")
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for pattern, fitting in {
        "**/*.tar": files[:3], "*.tar": files[2:3], "a/**/*.tar": files[:2], "*/?.tar": files[1:2], "./a/[xy].tar":
        files[1:2], "**": (), "": (), "/": (), "../*.tar": (), "**/b/**/*": ("a/b/n.txt", files[0]),
    }.items():  # fmt: skip
        found, _ = find_shards(tmp_path, pattern)
        assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(fitting)


def test_a_shard_that_grows_while_it_is_read_is_not_indexed(folder, monkeypatch):
    def scan_and_grow(root: Path, shard: Path, limits: DecodeLimits) -> ShardContent:
        content = scan_shard(root, shard, limits)
        with shard.open("ab") as file:
            file.write(bytes(BLOCK))
        return content

    monkeypatch.setattr(tar_source, "scan_shard", scan_and_grow)
    monkeypatch.setattr(tar_source, "in_processes", lambda work, jobs, *_, **__: ((job, work(job)) for job in jobs))
    with pytest.raises(DataError, match=r"00001\.tar changed while it was read: wait until it is complete"):
        source(folder).prepare()
    assert not list((folder.parent / "cache").rglob("index.parquet"))


def test_a_clip_of_too_large_frames_is_left_out(tmp_path):
    """Frames of 16 x 24 have 384 pixels."""
    large = encode(np.zeros((9, 32, 24, 3), np.uint8), fps=8)
    videos = {"a": CLIPS[0], "b": large, "c": CLIPS[1]}
    members = {f"{n}.mp4": content for n, content in videos.items()} | {f"{n}.txt": b"text" for n in videos}
    write_tar(tmp_path / "s.tar", members)
    source = TarShards(str(tmp_path), str(tmp_path / "cache"), max_megapixels=0.0004)
    index = ClipIndex.open(source.prepare())
    assert sorted(index.column("key")) == ["s/a", "s/c"]
    assert "max_megapixels=0.0004" in index.metadata["rejected"]["s/b"]


def die_in(root: Path, shard: Path, **settings) -> ShardContent:
    if shard.name == "b.tar":
        os._exit(1)
    return scan_shard(root, shard, **settings)


def test_a_shard_that_ends_the_process_reading_it_is_rejected(folder, monkeypatch):
    """As a fault of a decoder may."""
    write_tar(folder / "b.tar", {"n.mp4": CLIPS[0], "n.txt": b"new"})
    monkeypatch.setattr(tar_source, "scan_shard", die_in)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    index = ClipIndex.open(source(folder).prepare())
    assert index.metadata["rejected"] == {"b.tar": "the process that read it died"} and len(index) == 5
