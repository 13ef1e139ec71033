import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from vidlab.clip import ClipBatch
from vidlab.data.clip_transform import scale_to_cover
from vidlab.data.datasets.base import prepare_once
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode, to_pixels
from vidlab.errors import DataError, UserError
from vidlab.randomness import seed_of

SIZE = (12, 20)


def frames_of(number: int, length: int = 10) -> np.ndarray:
    """Noise that is a pure function of the clip, so any slice of it is recognized."""
    return np.random.default_rng(number).integers(0, 256, (length, *SIZE, 3), dtype=np.uint8)


@dataclass
class NoiseSource:
    """25 clips, 5 of them held out, with two captions each."""

    folder: Path
    clips: int = 25
    lengths: Sequence[int] = (10,)
    name: str = "noise"

    def prepare(self) -> Path:
        return prepare_once(self.folder / f"{self.clips}-{self.lengths}", self.build)

    def build(self, folder: Path) -> None:
        with ShardWriter(folder, clips_per_shard=8) as writer:
            for n in range(self.clips):
                length = self.lengths[n % len(self.lengths)]
                video = encode(frames_of(n, length), 8, lossless=True)
                info = VideoInfo(length, *SIZE, 8.0, length / 8)
                writer.add(f"clip_{n}", video, info, [f"{n} first", f"{n} second"], "train" if n % 5 else "val")

    def damage(self, *numbers: int) -> None:
        """Zero the bytes of clips, as a bad disc would."""
        index = ClipIndex.open(self.prepare())
        for row in (index.row(number) for number in numbers):
            path = index.root / row.shard
            content = bytearray(path.read_bytes())
            content[row.offset : row.offset + row.size] = bytes(row.size)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> NoiseSource:
    return NoiseSource(tmp_path_factory.mktemp("noise"))


def module_of(source: NoiseSource, **settings) -> ClipDataModule:
    defaults = {
        "frames": 4,
        "height": 12,
        "width": 12,
        "batch_size": 6,
        "num_workers": 0,
        "val_clips": 4,
        "seed": 3,
    }
    return ClipDataModule(source, "noise", **{**defaults, **settings})


def first(module: ClipDataModule, count: int) -> list[ClipBatch]:
    return list(islice(iter(module.train_dataloader()), count))


def same(one: ClipBatch, other: ClipBatch) -> bool:
    facts = ("captions", "keys", "epochs", "number", "fps", "skipped")
    return all(getattr(one, f) == getattr(other, f) for f in facts) and torch.equal(one.pixels, other.pixels)


def as_rank(module: ClipDataModule, rank: int, world_size: int) -> ClipDataModule:
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, state=SimpleNamespace(fn="fit"))
    return module


@pytest.mark.parametrize(
    "settings", [{"num_workers": 1}, {"num_workers": 2}, {"cache_decoded_mb": 0}, {"cache_decoded_mb": 0.05}]
)
def test_batches_do_not_depend_on_workers_or_cache(source, settings):
    expected, batches = first(module_of(source), 12), first(module_of(source, **settings), 12)
    assert all(same(one, other) for one, other in zip(expected, batches, strict=True))
    assert [batch.number for batch in batches] == list(range(12))


def test_a_clip_is_the_keyed_segment_crop_and_caption(source):
    for batch in first(module_of(source, frame_stride=2, seed=9), 5):
        assert batch.pixels.shape == (6, 3, 4, 12, 12) and batch.pixels.dtype == torch.float32
        assert batch.fps == (4.0,) * 6
        for pixels, key, epoch, caption in zip(batch.pixels, batch.keys, batch.epochs, batch.captions, strict=True):
            number = int(key.removeprefix("clip_"))
            # 10 frames, 7 spanned: 4 places to begin. Width 20, 12 kept: 9 places.
            begin = seed_of(9, key, epoch, "frame_offset") % 4
            left = seed_of(9, key, epoch, "crop_x") % 9
            expected = frames_of(number)[begin : begin + 7 : 2, :, left : left + 12]
            assert torch.equal(pixels, to_pixels(expected))
            assert caption == f"{number} " + ("first", "second")[seed_of(9, key, epoch, "caption") % 2]


def pixels_by_visit(module: ClipDataModule, count: int) -> dict[tuple[str, int], tuple[torch.Tensor, str]]:
    return {
        (key, epoch): (pixels, caption)
        for batch in first(module, count)
        for pixels, key, epoch, caption in zip(batch.pixels, batch.keys, batch.epochs, batch.captions, strict=True)
    }


def test_views_repeat_after_so_many_epochs(source):
    drawn = pixels_by_visit(module_of(source), 10)
    two = pixels_by_visit(module_of(source, views=2), 10)
    middle = pixels_by_visit(module_of(source, views=0), 10)
    later = [(key, epoch) for key, epoch in two if epoch == 2]
    assert len(later) > 10
    for key, epoch in two:
        expected = drawn.get((key, epoch % 2))
        if expected is not None:
            assert torch.equal(two[key, epoch][0], expected[0]) and two[key, epoch][1] == expected[1]
        # 10 frames, 4 kept: 7 places to begin, the middle one is 3; 9 places for the crop, the middle one is 4
        number = int(key.removeprefix("clip_"))
        assert torch.equal(middle[key, epoch][0], to_pixels(frames_of(number)[3:7, :, 4:16]))
        assert middle[key, epoch][1] == f"{number} first"
    assert any(not torch.equal(two[visit][0], drawn[visit][0]) for visit in later)


def test_other_views_are_not_resumed(source):
    state = module_of(source, views=2).state_dict()
    module_of(source, views=2).load_state_dict(state)
    with pytest.raises(UserError, match=r"views \(data.views\) was 2 and is None"):
        module_of(source).load_state_dict(state)
    with pytest.raises(UserError, match=r"data.views=-1: it must be 0 or more"):
        module_of(source, views=-1)


def test_an_epoch_has_every_training_clip_once(source):
    batches = first(module_of(source), 10)
    seen = [key for b in batches for key, epoch in zip(b.keys, b.epochs, strict=True) if epoch == 1]
    assert sorted(seen) == sorted(f"clip_{n}" for n in range(25) if n % 5)


def test_ranks_share_the_stream(source):
    whole = [key for batch in first(module_of(source, batch_size=8), 5) for key in batch.keys]
    ranks = [first(as_rank(module_of(source, batch_size=4), rank, 2), 5) for rank in range(2)]
    assert whole == [key for pair in zip(*ranks, strict=True) for batch in pair for key in batch.keys]


def test_resuming_continues_the_stream(source):
    uninterrupted = first(module_of(source), 9)
    stopped = module_of(source, num_workers=1)
    stopped.batches_consumed = first(stopped, 4)[-1].number + 1
    resumed = module_of(source, num_workers=2)
    resumed.load_state_dict(stopped.state_dict())
    assert all(same(one, other) for one, other in zip(first(resumed, 5), uninterrupted[4:], strict=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, r"seed was 3 and is 4.*accept_changes=true"),
        ({"frames": 11}, r"index_hash \(data\) was .*:20 and is .*:10"),
        ({"bucketing": Bucketing(max_tokens=256, stride=4)}, r"bucketing \(data.bucketing\) was None"),
    ],
)
def test_resuming_another_order_is_refused(tmp_path, changes, named):
    source = NoiseSource(tmp_path, lengths=(10, 12))
    state = module_of(source).state_dict()
    with pytest.raises(UserError, match=named):
        module_of(source, **changes).load_state_dict(state)


def test_a_change_of_the_order_that_is_accepted_begins_a_new_epoch(source, caplog):
    stopped = module_of(source)
    stopped.batches_consumed = 5  # in the second epoch of 20 clips
    resumed = module_of(source, seed=4)
    resumed.accept_changes = True
    with caplog.at_level("WARNING"):
        resumed.load_state_dict(stopped.state_dict())
    assert "seed was 3 and is 4" in caplog.text
    batches = first(resumed, 8)
    assert batches[0].number == 5
    expected = SingleBucketPlan(Assignment.same(Bucket(4, 16, 16), 20), 6, 4).order(2)
    keys = [resumed.data.train.row(int(position)).key for position in expected]
    assert [key for batch in batches for key in batch.keys][:20] == keys
    assert [epoch for batch in batches for epoch in batch.epochs][:21] == [2] * 20 + [3]
    resumed.batches_consumed = 9
    again = module_of(source, seed=4)
    again.load_state_dict(resumed.state_dict())
    assert same(first(again, 1)[0], batches[4])


def test_resuming_with_another_batch_size_and_world_goes_on_with_the_epoch(source, caplog):
    """6 on one process, then 2 on each of three, then 5 on one: the stream of clips, with its crops, is the same."""
    reference = [clip for batch in first(module_of(source, batch_size=1), 65) for clip in batch.keys]
    pixels = torch.cat([batch.pixels for batch in first(module_of(source, batch_size=1), 65)])
    seen, shown = [], []

    def leg(state, batches: int, batch_size: int, world: int):
        ranks = [as_rank(module_of(source, batch_size=batch_size), rank, world) for rank in range(world)]
        for each in ranks:
            if state is not None:
                each.load_state_dict(state)
        for step in zip(*(first(each, batches) for each in ranks), strict=True):
            seen.extend(key for batch in step for key in batch.keys)
            shown.extend(batch.pixels for batch in step)
            for each in ranks:
                each.batches_consumed = step[0].number + 1
        states = [each.state_dict() for each in ranks]
        assert all(state == states[0] for state in states)
        return states[0]

    with caplog.at_level("INFO"):
        state = leg(leg(leg(None, 2, 6, 1), 3, 2, 3), 7, 5, 1)
    assert seen == reference and torch.equal(torch.cat(shown), pixels)
    assert [segment["first"] for segment in state["history"]["segments"]] == [0, 2, 5]
    assert "batches are 3 x 2 (processes x data.batch_size), and were 1 x 6" in caplog.text


def test_resuming_with_other_data_is_refused(source, tmp_path):
    state = module_of(source).state_dict()
    with pytest.raises(UserError, match="index_hash"):
        module_of(NoiseSource(tmp_path, clips=24)).load_state_dict(state)
    evaluating = as_rank(module_of(source, seed=9), 0, 2)
    evaluating.trainer.state.fn = "validate"
    evaluating.load_state_dict(state)
    assert evaluating.batches_consumed == 0


def test_validation_is_fixed_and_centred(source):
    module = module_of(source, batch_size=3)
    batches = list(module.val_dataloader())
    assert [batch.keys for batch in batches] == [("clip_0", "clip_5", "clip_10"), ("clip_15",)]
    assert len(module.val_dataloader()) == 2
    assert batches[0].captions == ("0 first", "5 first", "10 first") and batches[0].epochs == (0, 0, 0)
    # 10 - 4 = 6 frames to spare, 3 before; 20 - 12 = 8 columns to spare, 4 left.
    assert torch.equal(batches[0].pixels[1], to_pixels(frames_of(5)[3:7, :, 4:16]))
    assert all(same(a, b) for a, b in zip(batches, module.val_dataloader(), strict=True))


def test_validation_gives_every_rank_equally_many_batches(source):
    loaders = [list(as_rank(module_of(source, val_clips=5, batch_size=1), r, 2).val_dataloader()) for r in range(2)]
    assert [[b.keys for b in batches] for batches in loaders] == [
        [("clip_0",), ("clip_10",)],
        [("clip_5",), ("clip_15",)],
    ]
    assert module_of(source, val_clips=0).val_dataloader() == []
    with pytest.raises(DataError, match=r"data.val_clips"):
        as_rank(module_of(source), 0, 9).val_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_clips_are_replaced_reported_and_counted(tmp_path, workers):
    source = NoiseSource(tmp_path)
    source.damage(3, 7)
    module = module_of(source, max_corrupt=2, num_workers=workers)
    batches = first(module, 8)
    assert all(len(batch) == 6 for batch in batches)
    assert not {"clip_3", "clip_7"} & {key for batch in batches for key in batch.keys}
    assert set(module.corrupt) == {"clip_3", "clip_7"}
    assert all("not those that were written" in reason for reason in module.corrupt.values())
    reports = {entry for batch in batches for entry in batch.skipped}
    assert reports == set(module.corrupt.items())
    assert all(same(a, b) for a, b in zip(batches, first(module_of(source, max_corrupt=2), 8), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("limit", "allowed"), [(0, False), (0.07, False), (1, False), (0.08, True), (2, True)])
def test_max_corrupt_is_a_share_or_a_number(tmp_path, limit, allowed, workers):
    source = NoiseSource(tmp_path)
    source.damage(3, 7)
    module = module_of(source, max_corrupt=limit, num_workers=workers)
    if allowed:
        assert len(first(module, 8)) == 8
    else:
        with pytest.raises(
            DataError, match=r"^[12] of 25 clips .*data\.max_corrupt.*clip_[37]: .* not those that were written"
        ):
            first(module, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wholly_unreadable_set_is_one_short_error(tmp_path, workers):
    source = NoiseSource(tmp_path)
    source.damage(*range(25))
    others = multiprocessing.active_children()
    with pytest.raises(DataError, match="in a row cannot be read, first clip_") as caught:
        first(module_of(source, max_corrupt=99, num_workers=workers), 1)
    assert "Traceback" not in str(caught.value)
    # though the error, and with it the loader, is still there
    assert set(multiprocessing.active_children()) <= set(others)


def test_short_clips_are_left_out_and_named(tmp_path):
    source = NoiseSource(tmp_path, lengths=(10, 6))
    with pytest.warns(UserWarning, match="12 of 25 clips are shorter"):
        keys = {key for batch in first(module_of(source, frames=7), 9) for key in batch.keys}
    assert keys == {f"clip_{n}" for n in range(0, 25, 2) if n % 5}
    with pytest.raises(DataError, match=r"data\.frames=12.*longest of 25 clips has 10.*data\.frames=10"):
        module_of(source, frames=12).setup()
    with pytest.raises(DataError, match=r"13 frames.*longest of 25 clips has 10.*data\.frames=4 "):
        module_of(source, frames=5, frame_stride=3).setup()


def test_every_second_batch_shows_key_frames(source):
    plain, both = (
        first(module_of(source, frames=3, seed=9), 4),
        first(module_of(source, frames=3, seed=9, key_frame_stride=4), 4),
    )
    assert [batch.strides.tolist() for batch in both] == [[1.0] * 6, [4.0] * 6, [1.0] * 6, [4.0] * 6]
    assert [batch.keys for batch in both] == [batch.keys for batch in plain]
    assert torch.equal(both[2].pixels, plain[2].pixels)
    far = both[1]
    for pixels, key, epoch in zip(far.pixels, far.keys, far.epochs, strict=True):
        begin, left = seed_of(9, key, epoch, "frame_offset") % 2, seed_of(9, key, epoch, "crop_x") % 9  # 9 of 10 frames
        expected = frames_of(int(key.removeprefix("clip_")))[begin : begin + 9 : 4, :, left : left + 12]
        assert torch.equal(pixels, to_pixels(expected))
    held_out = list(module_of(source, frames=3, key_frame_stride=4).val_dataloader())
    assert {stride for batch in held_out for stride in batch.strides.tolist()} == {1.0}


def test_key_frames_that_cannot_be_shown_are_refused(source):
    for settings, message in (
        ({"key_frame_stride": 2, "frame_stride": 2}, r"data\.key_frame_stride=2: it must be 3 or more"),
        (
            {"key_frame_stride": 2, "bucketing": Bucketing(max_tokens=144, stride=4)},
            r"data\.bucketing\.max_tokens knows one",
        ),
    ):
        with pytest.raises(UserError, match=message):
            module_of(source, **settings)
    with pytest.raises(
        DataError, match=r"data\.key_frame_stride=4: 13 frames needed.*or a lower data\.key_frame_stride"
    ):
        module_of(source, key_frame_stride=4).setup()


def test_enlarging_is_said_once(source):
    with pytest.warns(UserWarning, match=r"25 of 25 clips are smaller than data.height=24.*12 x 20") as caught:
        batch = first(module_of(source, height=24, width=24), 2)[0]
    assert batch.pixels.shape[-2:] == (24, 24)
    assert sum("smaller" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("key", ["frames", "height", "batch_size", "frame_stride", "num_workers", "val_clips"])
def test_settings_out_of_range_are_named(source, key):
    with pytest.raises(UserError, match=rf"data\.{key}=-1"):
        module_of(source, **{key: -1})


def test_fingerprint_tells_what_the_run_sees(source):
    same_view = {module_of(source, num_workers=w, cache_decoded_mb=w).fingerprint for w in (0, 2)}
    same_view.add(as_rank(module_of(source, batch_size=3), 0, 2).fingerprint)
    assert len(same_view) == 1
    others = (
        {"seed": 4},
        {"frames": 5},
        {"batch_size": 5},
        {"height": 10},
        {"frame_stride": 2},
        {"val_clips": 3},
        {"key_frame_stride": 2},
    )
    assert len({module_of(source, **changes).fingerprint for changes in others} | same_view) == len(others) + 1


def test_scaling_agrees_with_pillow():
    frames = np.kron(frames_of(0, 2)[:, :10, :15], np.ones((1, 4, 4, 1), np.uint8))
    scaled = scale_to_cover(frames, 12, 16)
    assert scaled.shape == (2, 12, 18, 3) and scaled.dtype == np.uint8
    reference = np.asarray(Image.fromarray(frames[0]).resize((18, 12), Image.Resampling.BICUBIC))
    assert np.abs(scaled[0].astype(int) - reference).max() <= 1
    assert scale_to_cover(frames, 40, 30) is frames


class Recorder(L.LightningModule):
    """Notes what it is given, and tells the data how far it got."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []
        self.validated: list[tuple[str, ...]] = []

    def training_step(self, batch: ClipBatch, index: int) -> torch.Tensor:
        assert isinstance(batch, ClipBatch)
        self.seen.append(batch.keys)
        return (self.weight - batch.pixels.mean()) ** 2

    def on_train_batch_end(self, outputs, batch: ClipBatch, index: int) -> None:
        self.trainer.datamodule.batches_consumed = batch.number + 1

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        self.validated.append(batch.keys)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_resumes_in_the_middle_of_an_epoch(source, tmp_path, accumulate):
    def fit(steps: int, workers: int, checkpoint: str | None = None) -> tuple[Recorder, L.Trainer]:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=-1,
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            use_distributed_sampler=False,
            check_val_every_n_epoch=None,
            val_check_interval=2 * accumulate,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        recorder = Recorder()
        trainer.fit(recorder, datamodule=module_of(source, num_workers=workers), ckpt_path=checkpoint)
        return recorder, trainer

    whole, _ = fit(7, workers=0)
    assert whole.validated == [("clip_0", "clip_5", "clip_10", "clip_15")] * 3
    stopped, trainer = fit(3, workers=1)
    path = str(tmp_path / "stopped.ckpt")
    trainer.save_checkpoint(path)
    resumed, trainer = fit(7, workers=1, checkpoint=path)
    assert stopped.seen + resumed.seen == whole.seen
    assert len(whole.seen) == 7 * accumulate and trainer.datamodule.batches_consumed == 7 * accumulate
    assert torch.equal(resumed.weight, whole.weight)


def test_a_clip_of_too_large_frames_is_unreadable(source):
    """The setting's name is said, so that it can be raised."""
    module = module_of(source, max_megapixels=1e-5, max_corrupt=0)
    with pytest.raises(DataError, match="max_megapixels=1e-05"):
        next(iter(module.train_dataloader()))
    with pytest.raises(UserError, match=r"data.max_decoded_mb=0: it must be above 0"):
        module_of(source, max_decoded_mb=0)
