import json

import numpy as np
import pytest
import torch

from vidlab.data.video.contact_sheets import write_lossless_mp4
from vidlab.errors import DataError, UserError
from vidlab.lab.evaluation.clips import (
    RECORD,
    ScoredClip,
    clips_of_folder,
    pixels_of,
    real_batches,
    real_clips,
    write_record,
)


def video(folder, name, frames=6, side=16, level=0):
    path = folder / f"{name}.mp4"
    ramp = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 10 + level
    return write_lossless_mp4(path, np.broadcast_to(ramp, (frames, side, side, 3)).copy(), 8.0)


def test_videos_come_with_the_text_beside_them(tmp_path):
    video(tmp_path, "b")
    video(tmp_path, "a").with_suffix(".txt").write_text("a red\nsquare\n")
    clips = clips_of_folder(tmp_path, "videos")
    assert [(clip.key, clip.caption) for clip in clips] == [("a.mp4", "a red square"), ("b.mp4", "")]
    pixels = pixels_of(clips)
    assert pixels.shape == (2, 3, 6, 16, 16)
    torch.testing.assert_close(pixels[0, 0, :, 0, 0], torch.arange(6) * 10 / 127.5 - 1)


def test_a_record_keeps_keys_and_is_checked(tmp_path):
    path = video(tmp_path, "0")
    write_record(tmp_path, [ScoredClip("clip-7", "a text", path)])
    assert clips_of_folder(tmp_path, "videos") == [ScoredClip("clip-7", "a text", path)]
    path.unlink()
    with pytest.raises(DataError, match="1 of 1 videos are missing"):
        clips_of_folder(tmp_path, "videos")
    (tmp_path / RECORD).write_text("[{}]")
    with pytest.raises(DataError, match="damaged"):
        clips_of_folder(tmp_path, "videos")


def test_a_record_names_files_of_its_own_folder_only(tmp_path):
    outside = video(tmp_path, "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    row = {"key": "k", "caption": "", "file": f"../{outside.name}", "factors": None}
    (inside / RECORD).write_text(json.dumps([row]))
    with pytest.raises(DataError, match="missing"):
        clips_of_folder(inside, "videos")


def test_sizes_must_agree(tmp_path):
    video(tmp_path, "a")
    video(tmp_path, "b", side=32)
    with pytest.raises(DataError, match=r"b\.mp4 has 6 frames of 32 x 32, a\.mp4 6 frames of 16 x 16"):
        pixels_of(clips_of_folder(tmp_path, "videos"))


def test_no_folder_and_no_video(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        clips_of_folder(tmp_path / "no", "videos")
    with pytest.raises(DataError, match="no video found"):
        clips_of_folder(tmp_path, "videos")


def test_reference_clips_are_cut_from_the_middle(tmp_path):
    video(tmp_path, "long", frames=11)
    video(tmp_path, "short", frames=4)
    clips = real_clips(tmp_path, 5, None)
    assert [clip.key for clip in clips] == ["long.mp4"]
    ((keys, pixels),) = real_batches(clips, (5, 8, 8), 4)
    assert keys == ("long.mp4",) and pixels.shape == (1, 3, 5, 8, 8)
    torch.testing.assert_close(pixels[0, 0, :, 0, 0], torch.arange(3, 8) * 10 / 127.5 - 1)
    with pytest.raises(DataError, match="none of 2 clips has 20 frames; the longest has 11"):
        real_clips(tmp_path, 20, None)


def test_no_more_reference_clips_are_opened_than_are_wanted(tmp_path):
    for name in ("a", "b"):
        video(tmp_path, name)
    (tmp_path / "c.mp4").write_bytes(b"never opened")
    assert [clip.key for clip in real_clips(tmp_path, 5, 2)] == ["a.mp4", "b.mp4"]
