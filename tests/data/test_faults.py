"""Faults of files: each is noticed and named, training goes on or stops with a reason, and nothing is lost."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vidlab.clip import ClipBatch
from vidlab.data import clip_reader
from vidlab.data.module import ClipDataModule
from vidlab.data.storage.index import ClipIndex, write_index
from vidlab.data.storage.shards import ShardWriter, read_member
from vidlab.data.video import VideoInfo, encode
from vidlab.errors import CorruptClipError, DataError

CLIPS, BATCH = 40, 4


def write(folder: Path, seed: int = 0, size: tuple[int, int] = (16, 16), told: tuple[int, int] | None = None) -> Path:
    """Five shards of 8 clips of noise; the index may tell another size."""
    with ShardWriter(folder, clips_per_shard=8) as writer:
        for n in range(CLIPS):
            frames = np.random.default_rng([seed, n]).integers(0, 256, (6, *size, 3), dtype=np.uint8)
            info = VideoInfo(6, *(told or size), 8.0, 0.75)
            writer.add(f"clip_{n}", encode(frames, 8, lossless=True), info, [f"clip {n}"])
    return folder


class Written:
    """A finished folder as a source."""

    name = "written"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> Path:
        return self.folder


def module_of(folder: Path, **settings) -> ClipDataModule:
    defaults = {"frames": 4, "height": 16, "width": 16, "batch_size": BATCH, "num_workers": 0, "val_clips": 0,
                "cache_decoded_mb": 0, "max_corrupt": 0}  # fmt: skip
    return ClipDataModule(Written(folder), "written", **(defaults | settings))


def batches(module: ClipDataModule, count: int) -> list[ClipBatch]:
    return list(islice(iter(module.train_dataloader()), count))


def run_until_fault(module: ClipDataModule, count: int) -> str:
    """Consume batches as training does, until the data fails; the message."""
    with pytest.raises(DataError) as caught:
        for batch in islice(iter(module.train_dataloader()), count):
            module.batches_consumed = batch.number + 1
    return str(caught.value)


def same(one: ClipBatch, other: ClipBatch) -> bool:
    return one.keys == other.keys and one.epochs == other.epochs and torch.equal(one.pixels, other.pixels)


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("faults") / "intact")


@pytest.fixture
def folder(intact, tmp_path) -> Path:
    return shutil.copytree(intact, tmp_path / "copy")


def zero_member(folder: Path) -> set[str]:
    row = ClipIndex.open(folder).row(13)
    path = folder / row.shard
    content = bytearray(path.read_bytes())
    content[row.offset : row.offset + row.size] = bytes(row.size)
    path.write_bytes(content)
    return {row.key}


def cut_off(folder: Path) -> set[str]:
    row = ClipIndex.open(folder).row(13)
    path = folder / row.shard
    path.write_bytes(path.read_bytes()[: row.offset + 100])
    return {f"clip_{n}" for n in (13, 14, 15)}


def delete(folder: Path) -> set[str]:
    (folder / "000001.tar").unlink()
    return {f"clip_{n}" for n in range(8, 16)}


def exchange(folder: Path) -> set[str]:
    """A shard of the same layout takes the place of another: every offset leads to a whole video, of another clip."""
    (folder / "000002.tar").replace(folder / "000001.tar")
    shutil.copy(folder / "000001.tar", folder / "000002.tar")
    return {f"clip_{n}" for n in range(8, 16)}


FAULTS = {
    zero_member: "damaged, the bytes of the clip are not",
    cut_off: "cut off",
    delete: "No such file",
    exchange: "shard and index do not belong together",
}


@pytest.mark.parametrize(
    ("damage", "said", "workers"), [*((*fault, 0) for fault in FAULTS.items()), (delete, "No such", 1)]
)
def test_training_stops_with_the_reason_and_goes_on_from_there_once_mended(intact, folder, damage, said, workers):
    """With max_corrupt=0. The batches after the repair are those of a run without the fault, none twice."""
    expected = batches(module_of(intact), 12)
    damage(folder)
    stopped = module_of(folder, num_workers=workers)
    message = run_until_fault(stopped, 12)
    assert said in message and "data.max_corrupt=0 allows" in message
    shutil.rmtree(folder)
    shutil.copytree(intact, folder)
    resumed = module_of(folder)
    resumed.load_state_dict(stopped.state_dict())
    at = stopped.batches_consumed
    assert all(same(*pair) for pair in zip(batches(resumed, 12 - at), expected[at:], strict=True))


@pytest.mark.parametrize(("damage", "said"), FAULTS.items())
def test_what_is_tolerated_is_replaced_named_and_no_other_clip_is_lost(folder, damage, said):
    bad = damage(folder)
    module = module_of(folder, max_corrupt=8)
    seen = batches(module, CLIPS // BATCH)
    assert set(module.corrupt) == bad and all(said in reason for reason in module.corrupt.values())
    keys = [key for batch in seen for key in batch.keys]
    assert len(keys) == CLIPS and set(keys) == {f"clip_{n}" for n in range(CLIPS)} - bad
    assert {key for batch in seen for key, _ in batch.skipped} == bad


def test_a_shard_deleted_in_the_middle_of_an_epoch(intact, folder):
    """Not seen before it is read again: the clips of the epoch so far stay as they were."""
    expected, module = batches(module_of(intact), 10), module_of(folder, max_corrupt=8)
    loader = iter(module.train_dataloader())
    assert all(same(next(loader), wanted) for wanted in expected[:4])
    bad = delete(folder)
    rest = list(islice(loader, 6))
    for batch, wanted in zip(rest, expected[4:], strict=True):
        kept = [place for place, key in enumerate(wanted.keys) if key not in bad]
        assert [batch.keys[place] for place in kept] == [wanted.keys[place] for place in kept]
        assert torch.equal(batch.pixels[kept], wanted.pixels[kept])
    assert set(module.corrupt) <= bad and module.corrupt


def test_an_index_of_other_videos_is_noticed(tmp_path):
    lying = write(tmp_path / "lying", told=(32, 24))
    message = run_until_fault(module_of(lying), 1)
    assert "the index says 32 x 24 pixels, the video has 16 x 16" in message
    # the same names, other contents: the members are of other sizes
    one, other = write(tmp_path / "one"), write(tmp_path / "other", seed=1, size=(24, 16))
    shutil.copy(one / "index.parquet", other / "index.parquet")
    assert "shard and index do not belong together" in run_until_fault(module_of(other), 1)


def test_the_name_in_the_header_is_compared_where_it_is_whole(tmp_path):
    long, foreign = "x" * 120, "größe"
    with ShardWriter(tmp_path) as writer:
        for key in ("short", long, foreign):
            writer.add(key, key.encode(), VideoInfo(1, 2, 2, 1.0, 1.0), ["a"])
    index = ClipIndex.open(tmp_path)
    for row in map(index.row, range(3)):
        assert read_member(tmp_path, row.shard, row.offset, row.size, row.key) == row.key.encode()
    row = index.row(0)
    with pytest.raises(CorruptClipError, match=r"the shard has short\.mp4 of 5 bytes"):
        read_member(tmp_path, row.shard, row.offset, row.size, "other")
    with pytest.raises(CorruptClipError, match=r"index says 4 bytes here, and the shard has short\.mp4 of 5"):
        read_member(tmp_path, row.shard, row.offset, 4, "short")
    with pytest.raises(CorruptClipError, match="no tar member begins where the index says"):
        read_member(tmp_path, row.shard, row.offset + 512, 5, "short")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("no rate"), MemoryError(), RecursionError("deep"), OSError(5, "I/O")]
)
def test_whatever_a_reader_raises_is_the_failure_of_its_clip(folder, monkeypatch, error):
    """Decoders raise what nobody has thought of."""
    read = clip_reader.read_frames

    def sometimes(source, indices, name, *limits):
        if name == "clip_13":
            raise error
        return read(source, indices, name, *limits)

    monkeypatch.setattr(clip_reader, "read_frames", sometimes)
    module = module_of(folder, max_corrupt=1)
    seen = batches(module, CLIPS // BATCH)
    assert list(module.corrupt) == ["clip_13"] and type(error).__name__ in module.corrupt["clip_13"]
    assert len({key for batch in seen for key in batch.keys}) == CLIPS - 1


def test_an_odd_row_of_an_index_is_replaced_named_and_counted(folder):
    """Beyond what the index's columns show: a caption that is missing."""
    index = ClipIndex.open(folder)
    rows = [index.row(n) for n in range(CLIPS)]
    write_index(folder, [replace(row, captions=() if row.key == "clip_13" else row.captions) for row in rows], {})
    module = module_of(folder, max_corrupt=1)
    seen = batches(module, CLIPS // BATCH)
    assert len({key for batch in seen for key in batch.keys}) == CLIPS - 1
    ((name, reason),) = module.corrupt.items()
    assert name.startswith("clip ") and name.endswith("index.parquet") and "it has no caption" in reason
    assert "it has no caption" in run_until_fault(module_of(folder), 12)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_beyond_single_clips_is_one_sentence(folder, workers):
    """Also from a worker, whose errors torch hands over as the text of a traceback."""
    module = module_of(folder, num_workers=workers)
    (rows,) = folder.glob("index-*.rows*")
    assert module.data.train
    content = rows.read_bytes()
    rows.write_bytes(bytes([content[0] ^ 1]) + bytes(len(content) - 1))
    message = run_until_fault(module, 4)
    assert (
        rows.name in message and "cannot be read" in message and "delete it" in message and "Traceback" not in message
    )


def test_names_of_clips_may_hold_anything(tmp_path):
    """Titles of films with a colon and a space; escapes that would color a terminal."""
    with ShardWriter(tmp_path / "set") as writer:
        for n in range(8):
            video = encode(np.full((6, 16, 16, 3), 20 * n, np.uint8), 8, lossless=True)
            writer.add(
                f"Film: part \x1b[31m{n}", bytes(len(video)) if n < 2 else video, VideoInfo(6, 16, 16, 8.0, 0.75), ["a"]
            )
    module = module_of(tmp_path / "set", max_corrupt=2)
    batches(module, 4)
    assert set(module.corrupt) == {"Film: part \x1b[31m0", "Film: part \x1b[31m1"}
    assert r"Film: part \x1b[31m" in run_until_fault(module_of(tmp_path / "set"), 4)
