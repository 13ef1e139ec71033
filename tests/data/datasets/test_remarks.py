"""What a clip is not shown as is said once for all clips of a data set, wherever they come from."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from test_webdataset import write_tar

from vidlab.curation.index_report import report_text
from vidlab.data.datasets.folder import FolderSource
from vidlab.data.datasets.open_sora_plan import OpenSoraPlanList
from vidlab.data.datasets.webdataset import TarShards
from vidlab.data.module import ClipDataModule
from vidlab.data.remarks import sentences
from vidlab.data.storage.index import ClipIndex, ClipRow, write_index

sys.path.append(str(Path(__file__).parents[1] / "video"))
from video_files import encoded

HDR = "HDR (PQ), read without tone mapping: pale on SDR screens"
COMBS = "interlaced, read with both fields in one frame: combs where something moves"


def pq(stream, frame):
    stream.codec_context.color_trc = frame.color_trc = 16


@pytest.fixture(scope="module")
def videos() -> dict[str, bytes]:
    """Two HDR clips, one that is interlaced, one plain."""
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    hdr = encoded(frames, "mp4", "libx264", change=pq)
    combs = encoded(frames, "mp4", "libx264", options={"x264-params": "interlaced=1"})
    return {"a": encoded(frames, "mp4", "libx264"), "b": hdr, "c": combs, "d": hdr}


def folder_of(tmp_path: Path, videos: dict[str, bytes], kind: str) -> FolderSource | OpenSoraPlanList | TarShards:
    folder, cache = tmp_path / "in", str(tmp_path / "cache")
    folder.mkdir()
    if kind == "shards":
        write_tar(folder / "0.tar", {f"{n}.{s}": c for n, v in videos.items() for s, c in (("mp4", v), ("txt", b"x"))})
        return TarShards(str(folder), cache)
    for name, video in videos.items():
        (folder / f"{name}.mp4").write_bytes(video)
        (folder / f"{name}.txt").write_text("x")
    if kind == "folder":
        return FolderSource(str(folder), cache)
    items = [{"path": f"{name}.mp4", "cap": "x", "cut": [0, 3]} for name in videos]
    (folder / "list.json").write_text(json.dumps(items))
    return OpenSoraPlanList(str(folder), cache_dir=cache)


@pytest.mark.parametrize(
    ("kind", "b", "c"),
    [("folder", "b.mp4", "c.mp4"), ("shards", "0/b", "0/c"), ("list", "b.mp4#0-3", "c.mp4#0-3")],
)
@pytest.mark.filterwarnings("ignore:data.path")
def test_every_source_says_what_its_clips_are_not_shown_as(tmp_path, videos, kind, b, c, caplog, recwarn):
    caplog.set_level(logging.WARNING)
    prepared = folder_of(tmp_path, videos, kind).prepare()
    said = [f"2 clips are {HDR} (first {b})", f"1 clip is {COMBS} (first {c})"]
    index = ClipIndex.open(prepared)
    assert list(sentences(index.metadata)) == said
    told = [record.getMessage() for record in caplog.records] + [str(warning.message) for warning in recwarn]
    assert [sum(text.endswith(sentence) for text in told) for sentence in said] == [1, 1]
    report = report_text(index, kind, prepared).splitlines()
    assert [line for line in report if "note" in line] == [f"  note: {sentence}" for sentence in said]


def rows(*splits: str) -> list[ClipRow]:
    return [
        ClipRow(f"k{n}", "0.tar", 512, 99, 8, 32, 48, 8.0, 1.0, ("x",), split, "", None)
        for n, split in enumerate(splits)
    ]


def test_remarks_are_not_part_of_the_hash(tmp_path):
    """They change no clip: a run goes on with an index that was made again."""
    hashes = set()
    for metadata in ({"a": 1}, {"a": 1, "remarks": {"x": {"first": "k0", "clips": 1}}}, {"a": 2}):
        write_index(tmp_path, rows("train"), metadata)
        assert ClipIndex.open(tmp_path).metadata == metadata
        hashes.add(ClipIndex.open(tmp_path).hash)
    assert len(hashes) == 2


@pytest.mark.parametrize("found", [3, [], {"x": 3}, {"x": {"clips": "y"}}, {"x": {}}])
def test_remarks_of_strangers_may_be_anything(found):
    assert list(sentences({"remarks": found})) == []


class Made:
    name = "made"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> Path:
        return self.folder


def test_clips_of_a_split_that_nothing_reads_are_counted(tmp_path):
    write_index(tmp_path, rows("train", "val", "test", "validation", "", "train", "validation", "\x1b"), {})
    assert ClipIndex.open(tmp_path).splits() == {
        "train": 2, "val": 1, "test": 1, "validation": 2, "": 1, "\x1b": 1}  # fmt: skip
    module = ClipDataModule(Made(tmp_path), "made", 4, 32, 48, batch_size=1)
    said = r"4 of 8 clips are of a split which is none of train, val and test \('validation' has 2, '' has 1, '.*x1b'"
    with pytest.warns(UserWarning, match=said):
        assert (len(module.data.train), len(module.data.val)) == (2, 1)
    assert "  not used: 4 clips of a split which is none of train, val and test" in report_text(
        ClipIndex.open(tmp_path), "made", tmp_path
    )


def test_a_sample_of_an_unknown_split_is_named(tmp_path, videos):
    record = json.dumps({"split": "dev", "caption": "x"}).encode()
    members = {"a.mp4": videos["a"], "a.json": record, "b.mp4": videos["a"], "b.txt": b"x"}
    write_tar(tmp_path / "in/0.tar", members)
    index = ClipIndex.open(TarShards(str(tmp_path / "in"), str(tmp_path / "cache")).prepare())
    (said,) = sentences(index.metadata)
    assert said == (
        "1 clip is of a split which is none of train, val and test, and by name in train or val (first 0/a)"
    )
    assert len(index) == 2
