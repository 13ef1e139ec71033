import hashlib
import logging

import numpy as np
import pytest

from vidlab.assets import AssetError
from vidlab.data.datasets import sample_clips as clips
from vidlab.data.datasets.sample_clips import (
    Clips,
    Detector,
    Window,
    check_cuts,
    detect_cuts,
    read_recordings,
    read_windows,
    reduce_frame,
)
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.shards import read_member
from vidlab.data.video import encode, read_frames
from vidlab.errors import DataError, UserError


def make_video(folder, name="cuts.mp4", size=(48, 64)):
    """Three shots of 20, 25 and 20 frames: still noise of very different brightness."""
    shots = []
    for i, (level, frames) in enumerate([(20, 20), (230, 25), (110, 20)]):
        noise = np.random.default_rng(i).integers(0, 20, (1, *size, 3))
        shots.append(np.repeat((level + noise).astype(np.uint8), frames, axis=0))
    path = folder / name
    path.write_bytes(encode(np.concatenate(shots), fps=25.0))
    return path


MANIFEST = """
detector: {{threshold: 27.0, min_scene_len: 15}}
short_side: 32
packages:
  some: {{version: 1.0.0, registry: pypi, form: wheel, sha256: '{zeros}', size: 10, license: MIT}}
  other: {{version: 1.0.0, registry: debian, form: deb, sha256: '{zeros}', size: 10, license: MIT}}
files:
  cuts.mp4: {{package: some, member: a/cuts.mp4, sha256: '{sha256}', size: {size}, license: CC0}}
  absent.mp4: {{package: other, member: a/absent.mp4, sha256: '{zeros}', size: {size}, license: CC0}}
clips:
  - file: cuts.mp4
    split: train
    shots:
      - {{start: 0, windows: [{{frames: [0, 20], caption: Dark grey noise.}}]}}
      - {{start: 20, dropped: too bright}}
      - {{start: {third}, windows: [{{frames: [46, 65], caption: Grey noise.}}]}}
  - file: absent.mp4
    split: val
    shots:
      - {{start: 0, windows: [{{frames: [0, 20], caption: Nothing.}}]}}
"""


@pytest.fixture
def make_manifest(tmp_path, monkeypatch):
    """A manifest of a recording that is cached already, and a Debian one on a machine without apt."""
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nowhere")
    video = make_video(tmp_path).read_bytes()
    sha256 = hashlib.sha256(video).hexdigest()
    cached = tmp_path / "cache" / "assets" / sha256 / "cuts.mp4"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(video)

    def make(third=45):
        manifest = tmp_path / "manifest.yaml"
        manifest.write_text(MANIFEST.format(zeros="0" * 64, sha256=sha256, size=len(video), third=third))
        return manifest

    return make


def test_cuts_are_found_where_they_are(tmp_path):
    assert detect_cuts(make_video(tmp_path), Detector(threshold=27.0, min_scene_len=15)) == [0, 20, 45]


def test_windows_become_shards(make_manifest, caplog):
    source = Clips(manifest=make_manifest())
    folder = source.prepare()
    index = ClipIndex.open(folder)
    assert index.column("key") == ["cuts_00000", "cuts_00046"]
    assert index.column("frames") == [20, 19]
    assert index.column("captions") == [["Dark grey noise."], ["Grey noise."]]
    assert set(index.column("source")) == {"some/a/cuts.mp4"} and set(index.column("split")) == {"train"}
    assert index.metadata["licenses"] == {"some/a/cuts.mp4": "CC0"}
    row = index.row(1)
    assert (row.height, row.width, row.fps) == (32, 42, 25.0)
    frames = read_frames(read_member(folder, row.shard, row.offset, row.size))
    assert abs(frames.mean() - 119.5) < 4  # level 110 plus noise of mean 9.5
    assert "goes on without absent.mp4" in caplog.text and "apt-get" in caplog.text


def test_shards_are_made_once_and_again_when_a_setting_changes(make_manifest, monkeypatch, caplog):
    manifest = make_manifest()
    first = Clips(manifest=manifest).prepare()
    monkeypatch.setattr(clips, "detect_cuts", lambda *_: pytest.fail("made again"))
    with caplog.at_level(logging.ERROR):
        assert Clips(manifest=manifest).prepare() == first
    with pytest.raises(pytest.fail.Exception, match="made again"):
        Clips(manifest=manifest, short_side=16).prepare()


def test_a_cut_that_moved_is_refused_and_nothing_is_left_behind(make_manifest):
    source = Clips(manifest=make_manifest(third=41))
    with pytest.raises(DataError, match=r"cuts.mp4: .* frames \[0, 20, 45\], .* written for \[0, 20, 41\]"):
        source.prepare()
    assert not list((clips.cache_folder() / "data").glob("*/index.parquet"))


def test_the_number_of_shots_must_agree():
    recording = read_recordings(clips.MANIFEST)[0]
    starts = [shot.start for shot in recording.shots]
    check_cuts(recording, [starts[0], *(start + 2 for start in starts[1:])])
    with pytest.raises(DataError, match=r"bikes.mp4"):
        check_cuts(recording, starts[:-1])
    with pytest.raises(DataError, match=r"bikes.mp4"):
        check_cuts(recording, [starts[0], *(start + 3 for start in starts[1:])])


def test_the_manifest_is_a_small_well_captioned_set():
    recordings = read_recordings(clips.MANIFEST)
    windows = [(r, w) for r in recordings for w in r.windows]
    assert 6 <= len(recordings) <= 10 and 20 <= len(windows) <= 60
    assert sum(r.split == "val" for r, _ in windows) >= 4
    assert all(r.split == "train" for r in recordings if r.asset.package.registry == "debian")
    captions = [w.caption for _, w in windows]
    assert len(set(captions)) == len(captions)
    assert all(caption.endswith(".") and 6 <= len(caption.split()) <= 30 for caption in captions)
    # Eight frames at stride three must fit into each window.
    assert min(w.end - w.first for _, w in windows) >= 22
    packages = {r.asset.package for r in recordings}
    assert sum(package.size for package in packages) < 150e6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frames: [0, 20], caption: Dark", "frames: [0, 21], caption: Dark", r"window \[0, 21\)"),
        ("frames: [46, 65]", "frames: [46, 60]", r"window \[46, 60\) needs a caption, 16 frames"),
        ("dropped: too bright", "dropped: ''", "shot 20 needs either windows or a reason"),
        ("split: val", "split: dev", "split dev must be train or val"),
        ("file: cuts.mp4", "file: cats.mp4", "clip cats.mp4 is not listed under files"),
        ("package: some,", "package: same,", "package=same is not listed under packages"),
    ],
)
def test_mistakes_in_a_manifest_are_named(make_manifest, old, new, message):
    manifest = make_manifest()
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new, 1))
    with pytest.raises((DataError, AssetError), match=message):
        Clips(manifest=manifest)


def test_frames_are_reduced_to_even_sides_and_never_enlarged():
    def shape(height, width):
        return reduce_frame(np.zeros((height, width, 3), np.uint8), 128).shape

    assert shape(272, 640) == (128, 302, 3)
    assert shape(405, 255) == (204, 128, 3)
    assert shape(90, 160) == (90, 160, 3)
    # Fine stripes average out instead of aliasing.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = reduce_frame(stripes, 16)
    assert abs(reduced.mean() - 127.5) < 1 and np.ptp(reduced[:, 2:-2]) <= 4


def test_windows_are_read_in_one_pass_and_a_short_file_is_refused(tmp_path):
    file = make_video(tmp_path)
    windows = [Window(3, 7, "a"), Window(7, 9, "b"), Window(60, 66, "c")]
    whole = read_frames(file)
    found = read_windows(file, windows, 48)
    for window in windows[:2]:
        got, frames = next(found)
        assert got == window and np.array_equal(frames, whole[window.first : window.end])
    with pytest.raises(DataError, match="ends before frame 66"):
        next(found)


def test_a_tiny_short_side_is_refused():
    with pytest.raises(UserError, match=r"data\.source\.short_side=8"):
        Clips(short_side=8)


@pytest.mark.network
def test_the_real_clips_are_cut_as_captioned(tmp_path, monkeypatch):
    index = ClipIndex.open(Clips(cache_dir=tmp_path).prepare())
    assert len(index) >= 40 and len(index.select("val", min_frames=22)) == 5
    assert set(index.column("height")) == {128}
    # Key frame 145 of this file decodes to plain green when reached by seeking.
    row = index.row(index.column("key").index("cockatoo_00202"))
    frame = read_frames(read_member(index.root, row.shard, row.offset, row.size), [0])[0]
    assert frame.mean((0, 1)).std() < 30
