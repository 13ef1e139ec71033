import csv
import os
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vidlab.data.datasets.folder import FolderSource, find_videos
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex
from vidlab.data.video import encode
from vidlab.errors import DataError, UserError

CONF = Path(__file__).resolve().parents[3] / "conf"


def video(frames: int = 8, level: int = 90) -> bytes:
    return encode(np.full((frames, 16, 24, 3), level, np.uint8), fps=8)


def make(folder: Path, *names: str, captions: bool = True, frames: int = 8) -> Path:
    for level, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video(frames, 10 * level))
        if captions:
            path.with_suffix(".txt").write_text(f"about {path.stem}\n")
    return folder


def source(folder: Path, **settings) -> FolderSource:
    return FolderSource(str(folder), cache_dir=str(folder.parent / "cache"), **settings)


def opened(folder: Path, **settings) -> ClipIndex:
    return ClipIndex.open(source(folder, **settings).prepare())


def captions_of(index: ClipIndex) -> dict[str, tuple[str, ...]]:
    return {index.row(n).key: index.row(n).captions for n in range(len(index))}


def test_videos_are_indexed_where_they_are(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "deep/er/b.mp4", "c.MP4", ".hidden/d.mp4", frames=12)
    index = opened(folder)
    assert index.root == folder and len(find_videos(folder)) == 3
    assert captions_of(index) == {
        "a.mp4": ("about a",),
        "c.MP4": ("about c",),
        "deep/er/b.mp4": ("about b",),
    }
    row = index.row(0)
    assert (row.shard, row.offset, row.size) == ("a.mp4", 0, (folder / "a.mp4").stat().st_size)
    assert (row.frames, row.height, row.width, row.fps) == (12, 16, 24, 8.0)
    assert not list((tmp_path / "cache").rglob("*.mp4"))


def test_the_index_is_made_again_only_when_something_changed(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4")
    first = source(folder).prepare()
    made = (first / "index.parquet").stat().st_mtime_ns
    assert source(folder).prepare() == first and (first / "index.parquet").stat().st_mtime_ns == made
    (folder / "a.txt").write_text("another text")
    second = source(folder).prepare()
    os.utime(folder / "b.mp4", ns=(1, 1))
    third = source(folder).prepare()
    make(folder, "c.mp4")
    assert len({first, second, third, source(folder).prepare(), source(folder, val_fraction=0.5).prepare()}) == 5
    assert captions_of(ClipIndex.open(second))["a.mp4"] == ("another text",)


def test_each_line_of_a_text_file_is_a_caption(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4")
    (folder / "a.txt").write_text("\ufeffa  red ball\n\n  rolls away \na red ball\n", encoding="utf-8")
    assert captions_of(opened(folder))["a.mp4"] == ("a red ball", "rolls away")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("file", "caption"), [("file", "caption"), ("video", "text"), ("Path", " Caption ")])
def test_captions_from_a_table(tmp_path, kind, file, caption):
    folder = make(tmp_path / "in", "a.mp4", "x/b.mp4", "y/b.mp4", "x/c.mp4", captions=False)
    rows = [
        ("a.mp4", 'a "red" ball,\nrolling'),
        ("./x/b.mp4", "first b"),
        ("x/b", "first b again"),
        (str(folder / "y" / "b.mp4"), "second b"),
        ("c.mp4", "by bare name"),
        ("gone.mp4", "nobody"),
        ("a.mp4", ""),
    ]
    if kind == "csv":
        with (folder / "captions.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([(file, "score", caption), *((name, 1, text) for name, text in rows)])
    else:
        columns = {file: [row[0] for row in rows], caption: [row[1] for row in rows]}
        pq.write_table(pa.table(columns), folder / "captions.parquet")
    with pytest.warns(UserWarning, match="1 rows name no video.*gone.mp4"):
        index = opened(folder)
    assert captions_of(index) == {
        "a.mp4": ('a "red" ball, rolling',),
        "x/b.mp4": ("first b", "first b again"),
        "x/c.mp4": ("by bare name",),
        "y/b.mp4": ("second b",),
    }


def test_an_ambiguous_bare_name_means_no_video(tmp_path):
    folder = make(tmp_path / "in", "x/b.mp4", "y/b.mp4", "a.mp4", "c.mp4", captions=False)
    (folder / "t.csv").write_text("file,caption\na.mp4,one\nc.mp4,two\nb.mp4,which\n")
    with pytest.warns(UserWarning, match="first 'b.mp4'"):
        assert set(captions_of(opened(folder))) == {"a.mp4", "c.mp4"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("clip,caption\na.mp4,x\n", "no column file or video or path; its columns are clip, caption"),
        ("file,label,score\na.mp4,x,1\n", "no column caption or text; its columns are file, label, score"),
        ("", "its columns are none"),
        (
            "file,caption\nz.mp4,x\n",
            "names none of the 2 videos.*it says 'z.mp4', the first video is 'a.mp4'",
        ),
    ],
)
def test_a_table_that_does_not_fit_says_what_it_has(tmp_path, table, message):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4", captions=False)
    (folder / "captions.csv").write_text(table)
    with pytest.raises(DataError, match=rf"captions\.csv.*{message}"):
        source(folder).prepare()


def test_unreadable_tables_are_named(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4")
    (folder / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"t\.parquet is not a readable Parquet"):
        source(folder).prepare()
    (folder / "u.csv").write_bytes("file,caption\na.mp4,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"several tables \(t\.parquet, u\.csv\)"):
        source(folder).prepare()
    with pytest.raises(DataError, match=r"u\.csv is not UTF-8"):
        source(folder, captions="u.csv").prepare()
    with pytest.raises(UserError, match=r"data\.source\.captions=v\.csv"):
        source(folder, captions="v.csv").prepare()


def test_paths_that_are_no_folder_of_videos(tmp_path):
    file = tmp_path / "clip.mp4"
    file.write_bytes(video())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.path is not set"):
        FolderSource(None).prepare()
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such folder"):
        source(tmp_path / "nowhere").prepare()
    with pytest.raises(UserError, match=r"data\.path=.*clip\.mp4: this is a file"):
        source(file).prepare()
    table = tmp_path / "my table.csv"
    table.touch()
    words = rf"data=folder data\.path={tmp_path} data\.source\.captions='\"my table\.csv\"' "
    with pytest.raises(
        UserError, match=rf"this is a table; give the folder of its videos and the table in it: {words}"
    ):
        source(table).prepare()
    with pytest.raises(DataError, match=r"data\.path=.*empty: no video found .*\.webm"):
        source(tmp_path / "empty").prepare()
    with pytest.raises(UserError, match=r"val_fraction=1\.5"):
        source(tmp_path, val_fraction=1.5).prepare()


def test_videos_without_caption_are_counted(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    (folder / "c.txt").write_text(" \n")
    with pytest.warns(UserWarning, match="1 of 3 videos have no caption"):
        index = opened(folder)
    assert set(captions_of(index)) == {"a.mp4", "b.mp4"} and index.metadata["without_caption"] == 1
    bare = make(tmp_path / "bare", "a.mp4", "b.mp4", captions=False)
    with (
        pytest.warns(UserWarning),
        pytest.raises(DataError, match=r"none of the 2 videos has a caption; .*clip\.txt"),
    ):
        source(bare).prepare()


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))


def spoil(folder: Path) -> dict[str, str]:
    """Add one file of each kind of unusable; the reasons expected for them."""
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "words.mp4").write_text("this is no video\n" * 30)
    write_sound(folder / "sound.mp4")
    whole = video(40)
    (folder / "cut.mp4").write_bytes(whole[: whole.index(b"moov")])
    reasons = {
        "zero": "empty",
        "words": "not a readable",
        "sound": "no video stream, only audio",
        "cut": "not a readable|no video",
    }
    for name in reasons:
        (folder / f"{name}.txt").write_text("a caption")
    return {f"{name}.mp4": reason for name, reason in reasons.items()}


@pytest.mark.filterwarnings("ignore:data.path")
def test_unusable_files_in_a_big_set_are_skipped_and_reported(tmp_path):
    folder = make(tmp_path / "in", *(f"{n}.mp4" for n in range(12)))
    expected = spoil(folder)
    rejected = opened(folder).metadata["rejected"]
    assert rejected.keys() == expected.keys()
    for key, reason in expected.items():
        assert any(part in rejected[key] for part in reason.split("|")), rejected[key]
    settings = {"frames": 4, "height": 16, "width": 16, "batch_size": 4, "num_workers": 0}
    module = ClipDataModule(source(folder), "folder", max_corrupt=0.25, **settings)
    batches = list(islice(iter(module.train_dataloader()), 4))
    assert module.corrupt == rejected and not any(batch.skipped for batch in batches)
    with pytest.raises(DataError, match=r"^4 of 16 clips .*data\.max_corrupt=0\.2 .*cut\.mp4"):
        ClipDataModule(source(folder), "folder", max_corrupt=0.2, **settings).setup()


@pytest.mark.filterwarnings("ignore:data.path")
def test_fewer_than_two_usable_clips_are_refused_with_the_reasons(tmp_path):
    folder = make(tmp_path / "in", "good.mp4")
    with pytest.raises(DataError, match=r"only good\.mp4 is usable, and 2 are needed"):
        source(folder).prepare()
    (folder / "good.mp4").unlink()
    spoil(folder)
    with pytest.raises(DataError, match=r"no video is usable.*cut\.mp4: "):
        source(folder).prepare()


def test_a_file_that_breaks_after_indexing_is_skipped(tmp_path):
    folder = make(tmp_path / "in", *(f"{n}.mp4" for n in range(8)))
    module = ClipDataModule(source(folder), "f", 4, 16, 16, batch_size=8, num_workers=0, max_corrupt=1)
    module.setup()
    victim = module.data.train.row(2).key
    (folder / victim).write_bytes(b"")
    batches = list(islice(iter(module.train_dataloader()), 3))
    assert set(module.corrupt) == {victim} and "cut off, 0 of" in module.corrupt[victim]
    assert all(victim not in batch.keys and len(batch) == 8 for batch in batches)


def test_clips_shorter_than_asked_name_the_longest(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4", frames=6)
    module = ClipDataModule(source(folder), "folder", frames=8, height=16, width=16)
    with pytest.raises(DataError, match=r"data\.frames=8.*the longest of 2 clips has 6.*data\.frames=6"):
        module.setup()


@pytest.mark.parametrize("val_fraction", [0.01, 0.3, 0.99])
def test_the_held_out_side_depends_on_names_and_is_never_empty(tmp_path, val_fraction):
    def held_out(folder: Path) -> set[str]:
        index = opened(folder, val_fraction=val_fraction)
        return set(index.select("val").column("key"))

    small = held_out(make(tmp_path / "small", *(f"{n}.mp4" for n in range(10))))
    large = held_out(make(tmp_path / "large", *(f"{n}.mp4" for n in range(20))))
    assert 1 <= len(small) <= 9 and 1 <= len(large) <= 19
    if val_fraction == 0.3:
        assert small == {key for key in large if int(key.removesuffix(".mp4")) < 10}


def test_the_config_makes_a_working_module(tmp_path):
    folder = make(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["data=folder", "seed=5"])
    config.data.path = str(folder)
    config.data.source.cache_dir = str(tmp_path / "cache")
    config.data.num_workers = 0
    config.data.height = config.data.width = 16
    module = instantiate(config.data, _convert_="all")
    batch = next(iter(module.train_dataloader()))
    assert batch.pixels.shape == (32, 3, 8, 16, 16) and set(batch.captions) <= {
        "about a",
        "about b",
        "about c",
    }
    assert module.seed == 5 and module.name == "folder" and len(list(module.val_dataloader())) == 1


def test_a_clip_of_too_large_frames_is_left_out(tmp_path):
    """The limit of the source is the one its videos are probed with."""
    for name, side in (("a", 16), ("b", 32), ("c", 16)):
        (tmp_path / f"{name}.mp4").write_bytes(encode(np.zeros((8, side, 16, 3), np.uint8), 8))
        (tmp_path / f"{name}.txt").write_text("text")
    source = FolderSource(str(tmp_path), str(tmp_path / "cache"), max_megapixels=0.000256)
    index = ClipIndex.open(source.prepare())
    assert sorted(index.column("key")) == ["a.mp4", "c.mp4"]
    assert "max_megapixels=0.000256" in index.metadata["rejected"]["b.mp4"]
