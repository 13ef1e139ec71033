"""Open-Sora Plan's lists: frames, crops and items that are odd."""

import json
import re

import numpy as np
import pytest

from vidlab.data.datasets.open_sora_plan import OpenSoraPlanList
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex
from vidlab.data.video import encode
from vidlab.lab.evaluation.clips import RealClip


@pytest.fixture
def folder(tmp_path):
    """A video whose frame n has brightness 4 n, 40 frames of 16 x 32, its right half brighter by 50."""
    frames = np.broadcast_to(4 * np.arange(40)[:, None, None, None], (40, 16, 32, 3)).astype(np.uint8)
    frames = frames + np.where(np.arange(32) >= 16, 50, 0).astype(np.uint8)[:, None]
    (tmp_path / "osp").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"osp/{name}.mp4").write_bytes(encode(frames, 8, lossless=True))
    return tmp_path / "osp"


def source(folder, *items):
    (folder / "list.json").write_text(json.dumps(items))
    return OpenSoraPlanList(str(folder), cache_dir=str(folder.parent / "cache"), val_fraction=0.3)


def rows(source):
    index = ClipIndex.open(source.prepare())
    return {index.row(n).key: index.row(n) for n in range(len(index))}, index.metadata["rejected"]


def item(path="a.mp4", **more):
    return {"path": path, "cap": ["text"], **more}


def test_parts_of_one_file_are_clips(folder, caplog):
    found, rejected = rows(
        source(
            folder,
            item(cut=[0, 10]),
            item(cut=[10, 30], num_frames=15),
            item(num_frames=40),
            item("b.mp4", cut=[36, 40], num_frames=24),
            item("b.mp4", crop=[0, 32, 0, 16]),
            item("b.mp4", crop=[16, None, 4, 12]),
        )
    )
    assert rejected == {}
    assert {key: (row.first_frame, row.frames, row.crop, row.height, row.width) for key, row in found.items()} == {
        "a.mp4#0-10": (0, 10, None, 16, 32),
        "a.mp4#10-25": (10, 15, None, 16, 32),
        "a.mp4": (None, 40, None, 16, 32),
        "b.mp4#36-40": (36, 4, None, 16, 32),
        "b.mp4": (None, 40, None, 16, 32),
        "b.mp4#8x16+4+16": (None, 40, (4, 16), 8, 16),
    }
    assert {row.source for key, row in found.items() if key.startswith("a")} == {"a.mp4"}
    assert found["a.mp4#10-25"].duration == 15 / 8
    assert "1 clips have fewer frames than the annotation says" in caplog.text


@pytest.mark.parametrize("cached", [0, 256])
def test_training_sees_the_part_alone(folder, cached):
    made = source(folder, item(cut=[10, 30]), item("b.mp4", cut=[30, 38], crop=[16, 32, 0, 16]))
    settings = {"frames": 4, "height": 16, "width": 16, "batch_size": 2, "num_workers": 0, "val_clips": 0}
    data = ClipDataModule(made, "x", cache_decoded_mb=cached, **settings)
    data.setup()
    (key,) = (data.data.train.row(n).key for n in range(len(data.data.train)))
    low, high = (10, 30) if key.startswith("a") else (30, 38)
    extra = 0 if key.startswith("a") else 50
    batches = iter(data.train_dataloader())
    for _ in range(4):
        pixels = (next(batches).pixels + 1) * 127.5
        numbers = (pixels[..., 0, 0].min() - extra) / 4, (pixels[..., 0, 0].max() - extra) / 4
        assert low - 0.1 <= numbers[0] and numbers[1] <= high - 0.9


def test_references_are_cut_from_the_part(folder):
    made = source(folder, item(cut=[10, 30]), item("b.mp4", cut=[31, 36], crop=[16, 32, 0, 16]))
    found, _ = rows(made)
    pixels = RealClip(folder, found["b.mp4#31-36#16x16+0+16"]).cut(3, 16, 16)
    assert [round(float((frame[0, 0] + 1) * 127.5)) for frame in pixels[0]] == [4 * n + 50 for n in (32, 33, 34)]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"cut": [50, 60]}, "it begins at frame 50, and the video has 40"),
        ({"cut": [20, 10]}, "has no frames"),
        ({"cut": "0-10"}, r"has the cut 0-10, which is not \[first, end\]"),
        ({"cut": [-1, 4]}, "has a cut of -1, which is not a whole number"),
        ({"num_frames": 1.5}, "has a num_frames of 1.5"),
        ({"num_frames": float("inf")}, "OverflowError"),
        ({"crop": [0, 64, 0, 16]}, "its crop, rows 0 to 16 and columns 0 to 64, does not lie in"),
        ({"crop": {"x": 1}}, "has the crop"),
        ({"cap": {"a": 1}}, "type dict"),
        ({"cap": "half \ud83d"}, "surrogate"),
        ({"cap": float("nan")}, "no caption"),
        ({"path": 3}, "has no path"),
        ({"path": "../../../b/0"}, "leads out of"),
    ],
)
def test_an_odd_item_is_left_out_by_name(folder, more, reason):
    found, rejected = rows(source(folder, item(), {**item("b.mp4"), **more}, item("b.mp4", cut=[0, 4], aes=10**400)))
    assert list(found) == ["a.mp4", "b.mp4#0-4"] and found["b.mp4#0-4"].scores == {}
    ((name, said),) = rejected.items()
    assert name in ("list.json, item 1", "b.mp4", "../../../b/0") or name.endswith("/b/0")
    assert re.search(reason, said)
