"""Published data sets, on small folders in exactly the form they are distributed in."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from vidlab.data.datasets.panda70m import Panda, PandaClip, read_panda_csv
from vidlab.data.datasets.published import UCF101, OpenSoraPlanList, OpenVid, WebVid
from vidlab.data.datasets.splits import HeldOutByName
from vidlab.data.storage.index import ClipIndex, ClipRow
from vidlab.data.tables.table_rows import BadItem
from vidlab.data.video import encode
from vidlab.errors import DataError, UserError

CLIP = encode(np.zeros((9, 16, 24, 3), np.uint8), fps=8)
COLUMNS = ("videoID", "url", "timestamp", "caption", "matching_score")
TIMES = [["0:00:01.500", "0:00:03.250"], ["1:02:03.000", "1:02:04.000"]]
ROWS = (
    ("a1", "https://www.youtube.com/watch?v=a1", str(TIMES), str(["a dog, running", "it's a cat"]), "[0.5, 0.25]"),
    ("b2", "https://www.youtube.com/watch?v=b2", "[['0:00:00.000', '0:00:01.000']]", "['a boat']", "[0.75]"),
)


def write_table(path: Path, *rows: tuple[str, ...]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def put(folder: Path, *files: str, content: bytes = CLIP) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def opened(source) -> dict[str, ClipRow]:
    index = ClipIndex.open(source.prepare())
    return {index.row(n).key: index.row(n) for n in range(len(index))}


@pytest.fixture
def panda(tmp_path):
    """Three clips of two videos as Panda's tool leaves them, one of them without its mp4."""
    folder = tmp_path / "panda"
    put(folder, "00000/0000000_00000.mp4", "00000/0000000_00001.mp4", "00000/0000001_00000.mp4")
    for stem, video in (("0000000_00000", "a1"), ("0000000_00001", "a1"), ("0000001_00000", "b2")):
        (folder / f"00000/{stem}.txt").write_text(f"beside {stem}\n")
        (folder / f"00000/{stem}.json").write_text(json.dumps({"url": f"https://www.youtube.com/watch?v={video}"}))
    write_table(folder / "panda70m_training_10m.csv", *ROWS)
    return folder


def test_pandas_lists_are_python_literals(panda):
    first, second, third = read_panda_csv(panda / "panda70m_training_10m.csv")
    assert (first.video_id, first.number, first.caption, first.score) == ("a1", 0, "a dog, running", 0.5)
    assert (first.start, first.end) == (1.5, 3.25) and (second.start, second.caption) == (3723.0, "it's a cat")
    assert (third.video_id, third.number, third.caption) == ("b2", 0, "a boat")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("__import__('os').abort()", "[]", "[]"), "timestamp that is not a Python list: __import__"),
        (("[['0:00', '1']]", "['a']", "[1]"), "time 0:00, which is not H:MM:SS.mmm"),
        (("[]", "['a']", "[]"), "0 timestamps, 1 captions and"),
        (("3", "[]", "[]"), "that is not a Python list: 3"),
    ],
)
def test_a_bad_row_is_named_and_runs_no_code(tmp_path, cells, message):
    write_table(tmp_path / "list.csv", ("x", "u", *cells), ROWS[1])
    bad, good = read_panda_csv(tmp_path / "list.csv")
    assert isinstance(bad, BadItem) and bad.name in ("list.csv, line 2", "x, clip 0")
    assert re.search(message, bad.reason)
    assert isinstance(good, PandaClip) and good.video_id == "b2"


def test_panda_as_downloaded(panda, tmp_path):
    rows = opened(Panda(str(panda), cache_dir=str(tmp_path / "cache")))
    assert {row.captions for row in rows.values()} == {
        (f"beside {s}",) for s in ("0000000_00000", "0000000_00001", "0000001_00000")
    }
    # clips of one video are on one side
    assert rows["00000/0000000_00000.mp4"].split == rows["00000/0000000_00001.mp4"].split
    assert {row.split for row in rows.values()} == {"train", "val"}
    assert (rows["00000/0000001_00000.mp4"].frames, rows["00000/0000001_00000.mp4"].width) == (9, 24)


def test_panda_with_a_table(panda, tmp_path, caplog):
    settings = {"annotation": "panda70m_training_10m.csv", "cache_dir": str(tmp_path / "cache")}
    rows = opened(Panda(str(panda), **settings))
    assert [row.captions[0] for _, row in sorted(rows.items())] == ["a dog, running", "it's a cat", "a boat"]
    rows = opened(Panda(str(panda), min_score=0.43, **settings))
    assert sorted(row.captions[0] for row in rows.values()) == ["a boat", "a dog, running"]
    assert "1 clips in" in caplog.text and "does not name them, or with a score below 0.43" in caplog.text
    assert sorted(row.scores["matching"] for row in rows.values()) == [0.5, 0.75]


def test_webvid(tmp_path, caplog):
    put(tmp_path, "videos/000001_000050/1.mp4", "videos/000001_000050/2.mp4")
    (tmp_path / "results_10M_train.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '1,u,PT00H00M10S,000001_000050,"A dog,  running"\n2,u,PT00H00M10S,000001_000050,A cat\n3,u,PT1S,000051,Gone\n'
    )
    rows = opened(WebVid(str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert [row.captions[0] for _, row in sorted(rows.items())] == ["A dog, running", "A cat"]
    assert "1 of the 3 videos named are not in" in caplog.text and "videos/000051/3.mp4" in caplog.text


def test_openvid(tmp_path, caplog):
    put(tmp_path, "video/a.mp4", "video/b.mp4", "video/c.mp4")
    (tmp_path / "OpenVid-1M.csv").write_text(
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
        "a.mp4,one,5.0,3.5,0.99,static,9,8,1\nb.mp4,two,4.0,9.5,0.99,pan_left,9,8,1\nc.mp4,three,6.0,1.0,0.99,,9,8,1\n"
    )
    cache = str(tmp_path / "cache")
    assert len(opened(OpenVid(str(tmp_path), cache_dir=cache))) == 3
    rows = opened(OpenVid(str(tmp_path), cache_dir=cache, min_aesthetic=4.5))
    assert "1 rows" in caplog.text and "are left out: with a score below those asked for" in caplog.text
    assert set(rows) == {"video/a.mp4", "video/c.mp4"}
    assert rows["video/a.mp4"].scores == {"aesthetic": 5.0, "motion": 3.5, "temporal_consistency": 0.99}


def test_ucf101(tmp_path):
    clips = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{g:02d}_c{c:02d}" for g in (1, 8) for c in (1, 2)]
    put(tmp_path, *(f"UCF-101/{clip}.avi" for clip in clips))
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{clip}.avi 1\n" for clip in clips[2:]))
    (lists / "testlist01.txt").write_text("".join(f"{clip}.avi\n" for clip in clips[:2]))
    rows = opened(UCF101(str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert {row.captions for row in rows.values()} == {("apply eye makeup",)}
    assert {key: row.split for key, row in rows.items()} == {
        f"UCF-101/{clip}.avi": "val" if "g01" in clip else "train" for clip in clips
    }
    assert rows[f"UCF-101/{clips[0]}.avi"].source == "ApplyEyeMakeup/v_ApplyEyeMakeup_g01"


def test_classes_of_ucf101(tmp_path):
    lists, source = tmp_path / "ucfTrainTestlist", UCF101(str(tmp_path))
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("YoYo/v_YoYo_g02_c01.avi 9\nArchery/v_Archery_g02_c01.avi 3\n")
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    assert source.class_names() == ("archery", "yo yo")
    (lists / "classInd.txt").write_text("10 HandstandPushups\r\n9 YoYo\r\n3 Archery\r\n")
    assert source.class_names() == ("archery", "yo yo", "handstand pushups"), "by their numbers"
    (lists / "classInd.txt").write_text("Archery\n")
    with pytest.raises(DataError, match=r"classInd\.txt: each line must be a number and a class"):
        source.class_names()


def test_open_sora_plan(tmp_path):
    put(tmp_path, "one/a.mp4", "two/b.mp4")
    (tmp_path / "data.txt").write_text("one,one.json\ntwo,two.json\n")
    (tmp_path / "one.json").write_text(json.dumps([{"path": "a.mp4", "cap": ["short", "longer"], "num_frames": 9}]))
    (tmp_path / "two.json").write_text(json.dumps([{"path": "b.mp4", "cap": "single", "fps": 8, "aes": 4.5}]))
    rows = opened(OpenSoraPlanList(str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert {key: row.captions for key, row in rows.items()} == {
        "one/a.mp4": ("short", "longer"),
        "two/b.mp4": ("single",),
    }
    assert [rows[key].scores for key in ("one/a.mp4", "two/b.mp4")] == [{}, {"aesthetic": 4.5}]


@pytest.mark.parametrize("kind", [Panda, WebVid, OpenVid, UCF101, OpenSoraPlanList])
def test_what_is_missing_is_said_with_what_to_do(kind, tmp_path):
    with pytest.raises(UserError, match=r"data.path is not set: give the folder of"):
        kind(None).prepare()
    with pytest.raises(UserError, match=r"no such folder"):
        kind(str(tmp_path / "absent")).prepare()
    with pytest.raises((UserError, DataError)) as caught:
        kind(str(tmp_path), cache_dir=str(tmp_path / "cache")).prepare()
    assert kind(None).advice() in str(caught.value)


def test_unreadable_videos_are_left_out(tmp_path, caplog):
    put(tmp_path, "video/a.mp4", "video/b.mp4")
    put(tmp_path, "video/bad.mp4", content=b"no video")
    (tmp_path / "OpenVid-1M.csv").write_text("video,caption\na.mp4,one\nb.mp4,two\nbad.mp4,three\n")
    assert set(opened(OpenVid(str(tmp_path), cache_dir=str(tmp_path / "cache")))) == {"video/a.mp4", "video/b.mp4"}
    assert "video/bad.mp4 left out" in caplog.text


def test_a_changed_annotation_makes_a_new_index(tmp_path):
    put(tmp_path, "video/a.mp4", "video/b.mp4", "video/c.mp4")
    table = tmp_path / "OpenVid-1M.csv"
    table.write_text("video,caption\na.mp4,one\nb.mp4,two\n")
    source = OpenVid(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    before = source.prepare()
    assert source.prepare() == before
    table.write_text("video,caption\na.mp4,one\nb.mp4,two\nc.mp4,three\n")
    assert source.prepare() != before and len(opened(source)) == 3


def test_one_recording_is_split_by_clip():
    rows = [ClipRow(f"k{n}", "s", 0, 1, 9, 8, 8, 8.0, 1.0, ("c",), "", "one", None) for n in range(4)]
    rule = HeldOutByName(0.25)
    for row in rows:
        rule.see(row)
    assert {rule.split(row) for row in rows} == {"train", "val"}
