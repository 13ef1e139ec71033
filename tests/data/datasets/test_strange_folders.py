"""Folders and lists of strangers: each odd thing is read, or counted and named."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlab.data.datasets.folder import FolderSource, find_videos
from vidlab.data.datasets.panda70m import Panda
from vidlab.data.datasets.published import UCF101, OpenVid, WebVid
from vidlab.data.storage.index import ClipIndex
from vidlab.data.video import encode
from vidlab.lab.evaluation.clips import clips_of_folder, readable

CLIP = encode(np.zeros((6, 16, 16, 3), np.uint8), fps=8)


def put(folder: Path, *names: str | bytes, content: bytes = CLIP) -> Path:
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(source) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    index = ClipIndex.open(source.prepare())
    return {index.row(n).key: index.row(n).captions for n in range(len(index))}, index.metadata["rejected"]


def folder_of(folder: Path, path: Path | None = None) -> FolderSource:
    return FolderSource(str(path or folder), cache_dir=str(folder.parent / "cache"))


@pytest.mark.filterwarnings("ignore:data.path")
def test_odd_files_of_a_folder_are_named(tmp_path):
    folder = put(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4", b"caf\xe9.mp4")
    for name in ("a", "b", os.fsdecode(b"caf\xe9")):
        (folder / f"{name}.txt").write_text("one\u2028line")
    (folder / "c.txt").write_bytes("a café".encode("latin-1"))
    captions, rejected = read(folder_of(folder))
    assert captions == {"a.mp4": ("one line",), "b.mp4": ("one line",)}
    assert rejected.keys() == {"c.mp4", r"caf\xe9.mp4"}
    assert "save it as UTF-8" in rejected["c.mp4"] and "rename it" in rejected[r"caf\xe9.mp4"]


def test_names_of_videos_that_are_no_files_are_counted(tmp_path):
    folder = put(tmp_path / "in", "a.mp4", "b.mp4")
    (folder / "gone.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (folder / "itself.avi").symlink_to("itself.avi")
    with pytest.warns(UserWarning, match=r"2 of 4 videos are no files that can be read.* first gone\.mp4"):
        found = find_videos(folder)
    assert [path.name for path in found] == ["a.mp4", "b.mp4"]


def test_any_error_of_a_video_is_its_own(tmp_path, monkeypatch, caplog):
    import vidlab.data.datasets.annotation as entry

    def probe(file, name, *more):
        if name.endswith("b.mp4"):
            raise MemoryError("too\x1b large")
        return real(file, name, *more)

    real = entry.probe_closely
    monkeypatch.setattr(entry, "probe_closely", probe)
    folder = put(tmp_path / "in", "video/a.mp4", "video/b.mp4", "video/c.mp4")
    (folder / "OpenVid-1M.csv").write_text("video,caption\na.mp4,x\nb.mp4,y\nc.mp4,z\n")
    captions, rejected = read(OpenVid(str(folder), cache_dir=str(tmp_path / "cache")))
    assert set(captions) == {"video/a.mp4", "video/c.mp4"}
    assert rejected == {"video/b.mp4": r"MemoryError: too\x1b large"}


def test_tables_find_videos_through_links_and_either_accents(tmp_path):
    decomposed = unicodedata.normalize("NFD", "señor.mp4")
    folder = put(tmp_path / "mount", decomposed, "a.mp4", "deep/b.mp4")
    put(tmp_path / "far", "d.mp4")
    (folder / "more").symlink_to(tmp_path / "far")
    (folder / "again").symlink_to(folder / "deep")
    (tmp_path / "data").symlink_to(folder)
    names = ("señor.mp4", f"{tmp_path}/data/a.mp4", "again/b.mp4", f"{tmp_path}/data/more/d.mp4")
    (folder / "t.csv").write_text("path,text\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names)))
    captions, rejected = read(folder_of(folder, tmp_path / "data"))
    assert captions == {decomposed: ("0",), "a.mp4": ("1",), "deep/b.mp4": ("2",), "more/d.mp4": ("3",)}
    assert rejected == {}


def test_text_files_of_either_accents_are_found(tmp_path):
    folder = put(tmp_path / "in", unicodedata.normalize("NFD", "ñ.mp4"), "b.mp4")
    for name in (unicodedata.normalize("NFC", "ñ.txt"), "b.txt"):
        (folder / name).write_text("words")
    assert set(read(folder_of(folder))[0].values()) == {("words",)}


@pytest.mark.filterwarnings("ignore:data.path")
def test_cells_of_a_parquet_table(tmp_path):
    folder = put(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    table = {"file": ["a.mp4", "b.mp4", "c.mp4", "d.mp4"], "caption": [["one", "two"], ["three"], None, []]}
    pq.write_table(pa.table(table), folder / "t.parquet")
    assert read(folder_of(folder))[0] == {"a.mp4": ("one", "two"), "b.mp4": ("three",)}
    pq.write_table(pa.table({"file": table["file"], "caption": [1.5, float("nan"), 3.0, 4.0]}), folder / "t.parquet")
    assert read(folder_of(folder))[0] == {"a.mp4": ("1.5",), "c.mp4": ("3.0",), "d.mp4": ("4.0",)}


def test_entries_that_lead_out_of_the_folder_are_refused_by_name(tmp_path, caplog):
    put(tmp_path, "b/0.mp4")
    folder = put(tmp_path / "x/y/set", "videos/1/1.mp4", "videos/1/2.mp4")
    rows = "1,1,one\n2,1,two\n0,../../../../b,out\n"
    (folder / "results_10M_train.csv").write_text(f"videoid,page_dir,name\n{rows}")
    captions, rejected = read(WebVid(str(folder), cache_dir=str(tmp_path / "cache")))
    assert set(captions) == {"videos/1/1.mp4", "videos/1/2.mp4"}
    ((name, reason),) = rejected.items()
    assert name == "videos/../../../../b/0.mp4" and reason.startswith(f"leads out of {folder}: link or move")
    absolute = put(tmp_path / "in", "a.mp4", "c.mp4")
    (absolute / "t.csv").write_text(f"file,caption\na.mp4,x\nc.mp4,y\n{tmp_path}/b/0.mp4,z\n../b/0.mp4,z\n")
    with pytest.warns(UserWarning, match="2 rows name no video.*leads out of it"):
        assert set(read(folder_of(absolute))[0]) == {"a.mp4", "c.mp4"}


def test_rows_of_one_video_are_its_captions(tmp_path, caplog):
    folder = put(tmp_path / "in", "video/a.mp4", "video/b.mp4", "video/c.mp4")
    (folder / "OpenVid-1M.csv").write_text("video,caption\na.mp4,x\nb.mp4,y\na.mp4,z\nc.mp4\nb.mp4,y\nc.mp4,w,,\n")
    captions, rejected = read(OpenVid(str(folder), cache_dir=str(tmp_path / "cache")))
    assert captions == {"video/a.mp4": ("x", "z"), "video/b.mp4": ("y",), "video/c.mp4": ("w",)}
    assert rejected == {"OpenVid-1M.csv, line 5": "has 1 of 2 cells"}
    assert "2 clips are named more than once, first video/a.mp4" in caplog.text


def test_a_row_without_the_score_that_is_asked_for_is_named(tmp_path):
    folder = put(tmp_path / "in", *(f"video/{name}.mp4" for name in "abcd"))
    rows = "a.mp4,x,1.5\nb.mp4,y,2\nc.mp4,z\nd.mp4,w,0.1\n"
    (folder / "OpenVid-1M.csv").write_text(f"video,caption,motion score\n{rows}")
    captions, rejected = read(OpenVid(str(folder), cache_dir=str(tmp_path / "cache"), min_motion=1.0))
    assert set(captions) == {"video/a.mp4", "video/b.mp4"}
    (reason,) = rejected.items()
    assert reason == ("OpenVid-1M.csv, line 4", "has no motion score, and data.source.min_motion=1.0 asks for one")


def test_odd_lines_of_ucf101(tmp_path):
    folder = put(tmp_path / "in", *(f"UCF-101/A/v_A_g0{n}_c01.avi" for n in (1, 2)))
    lists = put(folder, "ucfTrainTestlist/testlist01.txt", content=b"A/v_A_g02_c01.avi\n../../etc/passwd\n")
    put(lists, "ucfTrainTestlist/trainlist01.txt", content=b"A/v_A_g01_c01.avi 1\nA/caf\xe9.avi 1\n")
    captions, rejected = read(UCF101(str(folder), cache_dir=str(tmp_path / "cache")))
    assert len(captions) == 2 and set(rejected) == {"trainlist01.txt, line 2", "UCF-101/../../etc/passwd"}


@pytest.mark.parametrize("record", [b"[1]", b"{", b"\xff", b"[" * 9000, json.dumps({"url": 3}).encode()])
def test_odd_records_beside_pandas_clips(tmp_path, record):
    folder = put(tmp_path / "in", *(f"00000/000000{n}_00000.mp4" for n in range(3)), "00000/._0000000_00000.mp4")
    for number in range(2):
        (folder / f"00000/000000{number}_00000.json").write_text(json.dumps({"videoID": f"v{number}"}))
    (folder / "00000/0000002_00000.json").write_bytes(record)
    rows = "".join(f"v{n},\"[['0:0:0', '0:0:1']]\",['a {n}']\n" for n in range(3))
    (folder / "p.csv").write_text(f"videoID,timestamp,caption\n{rows}bad,3,4\n")
    captions, rejected = read(Panda(str(folder), annotation="p.csv", cache_dir=str(tmp_path / "cache")))
    assert set(captions.values()) == {("a 0",), ("a 1",)}
    assert set(rejected) == {"00000/0000002_00000.mp4", "p.csv, line 5"}


def test_evaluation_reads_what_training_reads(tmp_path, caplog):
    folder = put(tmp_path / "in", "a.mp4", "._a.mp4", ".hidden/x.mp4", "b.mp4", "c.mp4", b"caf\xe9.mp4")
    put(folder, "broken.mp4", content=CLIP[:300])
    (folder / "a.txt").write_bytes("\ufeffa red square\r\n".encode())
    (folder / "c.txt").write_bytes("caf\xe9".encode("latin-1"))
    clips = clips_of_folder(folder, "videos")
    assert [(clip.key, clip.caption) for clip in clips] == [
        ("a.mp4", "a red square"),
        ("b.mp4", ""),
        ("broken.mp4", ""),
    ]
    assert (
        r"2 of 5 videos cannot be used: c.mp4: its .txt is not UTF-8" in caplog.text and r"caf\xe9.mp4" in caplog.text
    )
    assert [clip.key for clip in readable(clips, "videos=x")] == ["a.mp4", "b.mp4"]
    assert "videos=x: 1 of 3 videos cannot be used: broken.mp4" in caplog.text


def test_evaluation_takes_captions_from_the_table_that_has_some(tmp_path):
    folder = put(tmp_path / "in", "a.mp4", "b.mp4")
    (folder / "scores.csv").write_text("video,score\na.mp4,1\n")
    (folder / "captions.csv").write_text("video,caption\na.mp4,one\na.mp4,another\nb.mp4,two\n")
    assert [clip.caption for clip in clips_of_folder(folder, "videos")] == ["one", "two"]


def test_text_files_whose_video_is_gone_are_counted(tmp_path):
    folder = put(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"in: 1 text files have no video of their name beside them, first d\.txt"):
        found = read(folder_of(folder))
    assert len(found[0]) == 3
