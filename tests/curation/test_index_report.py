"""What curate.py stage=index prints."""

import numpy as np
import pytest
from cached_parts import index_of

from vidlab.curation.index_report import left_out, report_text
from vidlab.data.storage.index import ClipIndex
from vidlab.data.video import encode
from vidlab.lab.curate import run_curation


@pytest.fixture
def folder(tmp_path):
    """Four videos: two that can be used, one cut off, one without a caption."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, name in enumerate(("a", "b", "broken", "silent")):
        video = encode(np.full((6 + number, 16, 24, 3), 50 * number, np.uint8), 8)
        (videos / f"{name}.mp4").write_bytes(b"nothing" if name == "broken" else video)
        if name != "silent":
            (videos / f"{name}.txt").write_text(f"about {name}")
    return videos


def test_the_report_of_a_folder(lab, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIDLAB_CACHE", str(tmp_path / "cache"))
    cfg = lab.compose("curate", "stage=index", "data.batch_size=2", f"data.path={folder}", "batch_size=3")
    cfg.data.source = {"_target_": "vidlab.data.datasets.folder.FolderSource", "path": str(folder), "val_fraction": 0.5}
    run_curation(cfg)
    lines = capsys.readouterr().out.strip().splitlines()
    index = ClipIndex.open(lines[0].removesuffix("/index.parquet"))
    assert len(index) == 2 and index.root == folder
    assert lines[1] == f"  data=folder: 2 clips in 2 files below {folder}"
    assert lines[2] == "  splits: 1 train, 1 val" and "  frames: 6 to 7, half of them 6.5 or less" in lines
    assert "  without a caption: 1 of 4 videos" in lines
    assert "  rejected: 1" in lines and any(
        "not a readable video" in line and "(first broken.mp4)" in line for line in lines
    )
    words = f"data.path={folder}"
    assert lines[-1].startswith("  train on it") and words in lines[-1] and " batch_size=3" not in lines[-1]
    assert "data.batch_size=2" in lines[-1] and "python curate.py stage=encode" in lines[-2]


def test_what_is_left_out_is_counted_by_reason():
    rejected = {f"{n}.mp4": f"reason {min(n % 9, 6)}" for n in range(27)}
    lines = left_out({"named": 40, "absent": 4, "rejected": rejected})
    assert lines[0] == "  absent: 4 of the 40 videos named are not there" and lines[1] == "  rejected: 27"
    assert lines[2] == "    9 because: reason 6 (first 6.mp4)" and len(lines) == 2 + 5 + 1
    assert lines[-1] == "    and 2 reasons more"
    videos = {"videos": 5, "without_caption": 2, "rejected": {}}
    assert left_out(videos) == ["  without a caption: 2 of 5 videos", "  rejected: none"]
    assert left_out({}) == ["  rejected: none"]
    shards = {
        "shards": 2,
        "without_video": 3,
        "without_caption": 1,
        "with_further_videos": 4,
        "rejected": {"a\x1b": "b\x1b"},
    }
    assert left_out(shards) == [
        "  without a caption: 1", "  without a video: 3 samples",
        "  with further videos that no text describes: 4 samples",
        "  rejected: 1", r"    1 because: b\x1b (first a\x1b)",
    ]  # fmt: skip
    assert left_out({"absent": "many", "without_caption": None, "videos": []}) == ["  rejected: none"]


def test_sizes_and_hours(lab):
    text = report_text(index_of(lab.clips), "patterns", lab.clips)
    assert "data=patterns: 12 clips in 3 files" in text and "splits: 9 train, 3 val" in text
    assert "height: 16 to 28, half of them 20 or less" in text and "0.00 hours" in text
