"""Bucketing from the index to the batches: plans, training shapes, what is printed, and its cost at scale."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidlab.clip import ClipBatch
from vidlab.data.clip_transform import scale_to_cover
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.bucketed import plan_buckets
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.storage.index import ClipIndex, ClipRow, write_index
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode, to_pixels
from vidlab.errors import DataError, UserError
from vidlab.lab.reports.data_plan import report, text_of
from vidlab.randomness import seed_of

ROOT = Path(__file__).resolve().parents[3]


def index_of(folder: Path, clips: list[tuple[int, int, int]], sources: list[str] | None = None) -> ClipIndex:
    """An index of clips of (frames, height, width) that do not exist, 10 to a shard."""
    rows = [
        ClipRow(f"clip_{n}", f"{n // 10}.tar", 0, 1, *shape, 24.0, shape[0] / 24, ("a clip",), "train",
                sources[n] if sources else "", None)
        for n, shape in enumerate(clips)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, rows, {})
    return ClipIndex.open(folder)


RULE = {"max_tokens": 4096, "max_frames": 9, "temporal_stride": 4, "first_frame_alone": True}


def test_columns_and_plan_of_an_index(tmp_path):
    index = index_of(tmp_path, [(9, 64, 64)] * 30 + [(5, 64, 64)] * 20 + [(9, 8, 64)] * 3)
    planned = plan_buckets(index, Bucketing(**RULE), 2, 0, 2)
    assert isinstance(planned.plan, BucketPlan) and planned.dropped == {"too small": 3}
    assert [(str(stats.bucket), stats.clips, stats.batch_size) for stats in planned.plan.stats] == [
        ("5x64x64", 20, 3),
        ("9x64x64", 30, 2),
    ]
    assert planned.plan.blocks.tolist() == [0]  # six shards of 10 clips make one block
    assert planned.balance.bound == 0 and planned.balance.steps == {3 * 2 * 4096: 4 + 8}


def test_one_bucket_keeps_the_plain_order(tmp_path):
    planned = plan_buckets(index_of(tmp_path, [(9, 64, 64)] * 30), Bucketing(**RULE), 4, 0, 2)
    assert isinstance(planned.plan, SingleBucketPlan) and planned.plan.steps_per_epoch == 4


def test_images_and_videos_of_an_index(tmp_path):
    index = index_of(tmp_path, [(1, 64, 64), (9, 64, 64), (5, 64, 64)] * 20)
    planned = plan_buckets(index, Bucketing(**RULE, image_every=9), 2, 0, 1)
    assert isinstance(planned.plan, InterleavedPlan)
    assert [planned.plan.bucket(number).frames == 1 for number in range(18)] == ([False] * 8 + [True]) * 2
    assert {planned.plan.batch(number)[0].position % 3 for number in (8, 17, 26)} == {0}
    assert "one in 9 of images" in "\n".join(report(planned))
    only_videos = index_of(tmp_path / "videos", [(9, 64, 64), (5, 64, 64)] * 20)
    planned = plan_buckets(only_videos, Bucketing(**RULE, image_every=9), 2, 0, 1)
    assert isinstance(planned.plan, BucketPlan) and "image_every has no effect" in "\n".join(report(planned))


def test_weights_by_source_and_its_beginning(tmp_path):
    sources = ["web/a", "web/b", "webcam", "film", "film/x"] * 8
    index = index_of(tmp_path, [(9, 64, 64)] * 40, sources)
    weights = {"web": 2.0, "web/b": 0.0, "film": 0.5}
    planned = plan_buckets(index, Bucketing(**RULE, weights=weights), 1, 0, 1)
    visits = [planned.plan.batch(number)[0].position for number in range(2 * planned.plan.steps_per_epoch)]
    assert planned.plan.steps_per_epoch == 8 * 2 + 8 + 8
    assert {sources[clip] for clip in visits} == {"web/a", "webcam", "film", "film/x"}
    assert [sum(sources[clip] == name for clip in visits) for name in ("web/a", "webcam")] == [32, 16]
    assert sum(sources[clip].startswith("film") for clip in visits) == 16
    assert planned.dropped == {"weight 0 of source 'web/b'": 8}
    with pytest.raises(UserError, match=r"weights\.tv: no clip has this source; some sources are"):
        plan_buckets(index, Bucketing(**RULE, weights={"tv": 1.0}), 1, 0, 1)


def test_plans_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no clip of 2 is in any bucket \(2 too small\)"):
        plan_buckets(index_of(tmp_path / "small", [(9, 8, 8)] * 2), Bucketing(**RULE), 1, 0, 1)
    two = index_of(tmp_path / "two", [(9, 64, 64), (5, 64, 48)])
    with pytest.raises(UserError, match=r"tail=drop: no bucket fills a step"):
        plan_buckets(two, Bucketing(**RULE, tail="drop", min_clips=0), 4, 0, 1)
    assert plan_buckets(two, Bucketing(**RULE), 4, 0, 1).assignment.moves[0].clips == 1


def test_a_bucket_without_a_step_is_named(tmp_path):
    index = index_of(tmp_path, [(9, 64, 64)] * 20 + [(5, 64, 48)])
    planned = plan_buckets(index, Bucketing(**RULE, tail="drop", min_clips=0), 4, 0, 1)
    assert planned.dropped == {"in a bucket that fills no step (tail=drop)": 1}


# Training on real files

SIZES = ((12, 32, 48), (9, 48, 32), (12, 32, 32), (4, 64, 64))


def pixels_of(number: int) -> np.ndarray:
    """Noise that is a pure function of the clip."""
    frames, height, width = SIZES[number % len(SIZES)]
    return np.random.default_rng(number).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


class MixedSource:
    """36 clips of four shapes, 4 of them held out."""

    name = "mixed"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> Path:
        if not (self.folder / "index.parquet").is_file():
            with ShardWriter(self.folder, clips_per_shard=8) as writer:
                for n in range(36):
                    frames = pixels_of(n)
                    info = VideoInfo(*frames.shape[:3], 24.0 if n % 8 < 4 else 12.0, len(frames) / 24)
                    video = encode(frames, 8, lossless=True)
                    writer.add(f"clip_{n}", video, info, [f"clip {n}"], "val" if n % 9 == 0 else "train")
        return self.folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> MixedSource:
    return MixedSource(tmp_path_factory.mktemp("mixed"))


def module_of(source: MixedSource, rank: int = 0, world_size: int = 1, **settings) -> ClipDataModule:
    rule = {"max_tokens": 1536, "stride": 16, "ratios": [[1, 1], [2, 3], [3, 2]], "temporal_stride": 4}
    rule |= settings.pop("bucketing", {})
    defaults = {"frames": 8, "height": 16, "width": 16, "batch_size": 2, "num_workers": 0, "val_clips": 2, "seed": 3}
    module = ClipDataModule(source, "mixed", bucketing=Bucketing(**rule), **{**defaults, **settings})
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, state=SimpleNamespace(fn="fit"))
    return module


def first(module: ClipDataModule, count: int) -> list[ClipBatch]:
    return list(islice(iter(module.train_dataloader()), count))


def same(one: ClipBatch, other: ClipBatch) -> bool:
    return one.keys == other.keys and one.fps == other.fps and torch.equal(one.pixels, other.pixels)


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_batches_have_the_shape_of_their_bucket(source):
    module = module_of(source)
    shapes = set()
    for batch in first(module, 40):
        bucket = module.plan.bucket(batch.number)
        frames, height, width = batch.pixels.shape[2:]
        assert (frames, height, width) == (bucket.frames, bucket.height, bucket.width)
        shapes.add(bucket)
        for pixels, key, epoch, visit in zip(batch.pixels, batch.keys, batch.epochs, batch.visits, strict=True):
            clip = scale_to_cover(pixels_of(int(key.removeprefix("clip_"))), height, width)
            # random crops: rows, columns and the first frame are keyed by the visit
            when = f"{epoch}.{visit}" if visit else epoch
            begin = seed_of(3, key, when, "frame_offset") % (len(clip) - frames + 1)
            top = seed_of(3, key, when, "crop_y") % (clip.shape[1] - height + 1)
            left = seed_of(3, key, when, "crop_x") % (clip.shape[2] - width + 1)
            clip = clip[begin : begin + frames, top : top + height, left : left + width]
            assert torch.equal(pixels, to_pixels(clip))
    assert shapes == {Bucket(8, 32, 48), Bucket(8, 48, 32), Bucket(8, 32, 32), Bucket(4, 32, 32)}


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_an_epoch_has_every_clip_once_on_some_rank(source):
    ranks = [module_of(source, rank, 2, bucketing={"tail": "smaller", "min_clips": 0}) for rank in range(2)]
    steps = ranks[0].plan.steps_per_epoch
    batches = [first(module, steps) for module in ranks]
    for one, other in zip(*batches, strict=True):
        assert one.pixels.shape == other.pixels.shape
    keys = [key for rank in batches for batch in rank for key in batch.keys]
    assert set(keys) == {f"clip_{n}" for n in range(36) if n % 9}
    assert len(keys) == len(set(keys)) + sum(stats.repeated for stats in ranks[0].plan.stats)


@pytest.mark.filterwarnings("ignore:data.frames=8")
@pytest.mark.parametrize("settings", [{"num_workers": 2}, {"cache_decoded_mb": 0}])
def test_bucketed_batches_do_not_depend_on_workers_or_cache(source, settings):
    expected, found = first(module_of(source), 20), first(module_of(source, **settings), 20)
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_bucketed_training_resumes_and_refuses_another_rule(source):
    uninterrupted = first(module_of(source), 9)
    stopped = module_of(source)
    stopped.batches_consumed = 4
    resumed = module_of(source)
    resumed.load_state_dict(stopped.state_dict())
    assert all(same(one, other) for one, other in zip(first(resumed, 5), uninterrupted[4:], strict=True))
    other = module_of(source, bucketing={"max_tokens": 1024})
    with pytest.raises(UserError, match=r"data\.bucketing\.max_tokens was 1536 and is 1024"):
        other.load_state_dict(stopped.state_dict())
    assert other.fingerprint != stopped.fingerprint


@pytest.mark.filterwarnings("ignore:data.frames=8")
@pytest.mark.parametrize("change", [{"batch_size": 1}, {"world_size": 2}, {"bucketing": {"tokens_per_batch": 6144}}])
def test_bucketed_training_goes_on_with_other_batches(source, change):
    """Every clip of the epoch once, before the change or after it."""
    rule = {"tail": "drop", "min_clips": 0, "tokens_per_batch": 3072}
    stopped = module_of(source, bucketing=rule)
    before = first(stopped, 3)
    stopped.batches_consumed = 3
    settings = {**change, "bucketing": rule | change.get("bucketing", {})}
    ranks = [module_of(source, rank, **settings) for rank in range(settings.get("world_size", 1))]
    for resumed in ranks:
        resumed.load_state_dict(stopped.state_dict())
    plan = ranks[0].plan
    after = [batch for resumed in ranks for batch in first(resumed, sum(stats.steps for stats in plan._rest.buckets))]
    assert {batch.number for batch in after} == set(range(3, 3 + len(after) // len(ranks)))
    keys = Counter(key for batch in (*before, *after) for key in batch.keys)
    assert set(keys.values()) == {1}
    assert len(keys) + sum(stats.left_out for stats in plan._rest.buckets) == 32


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_rates_are_sampled_as_the_rule_counted(source):
    """At 12 frames a second every second frame of 24, every frame of 12."""
    module = module_of(source, bucketing={"fps": 12.0, "temporal_stride": 2})
    for batch in first(module, 40):
        assert set(batch.fps) == {12.0}
        for key in batch.keys:
            number = int(key.removeprefix("clip_"))
            frames = SIZES[number % 4][0]
            kept = min(8, frames if number % 8 >= 4 else (frames + 1) // 2)
            assert batch.pixels.shape[2] <= kept - kept % 2


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_an_unreadable_clip_is_replaced_by_one_of_its_bucket(tmp_path):
    source = MixedSource(tmp_path)
    index = ClipIndex.open(source.prepare())
    bad = next(index.row(n) for n in range(36) if index.row(n).key == "clip_4")
    path = index.root / bad.shard
    content = bytearray(path.read_bytes())
    content[bad.offset : bad.offset + bad.size] = bytes(bad.size)
    path.write_bytes(content)
    module = module_of(source, max_corrupt=1)
    seen = first(module, 2 * module.plan.steps_per_epoch)
    (batch,) = [batch for batch in seen if batch.skipped][:1]
    bucket = module.plan.bucket(batch.number)
    assert batch.pixels.shape[2:] == (bucket.frames, bucket.height, bucket.width) and "clip_4" not in batch.keys


@pytest.mark.filterwarnings("ignore:data.frames=8")
def test_without_max_tokens_nothing_changes(source):
    plain = ClipDataModule(source, "mixed", 4, 16, 16, batch_size=2, num_workers=0, val_clips=2, seed=3)
    off = ClipDataModule(source, "mixed", 4, 16, 16, batch_size=2, num_workers=0, val_clips=2, seed=3,
                         bucketing=Bucketing())  # fmt: skip
    assert off.bucketing.recorded is None and off.fingerprint == plain.fingerprint
    assert all(same(one, other) for one, other in zip(first(off, 5), first(plain, 5), strict=True))
    text = "\n".join(report(off.planned(2)))
    assert "max_tokens is not set: every clip is trained in one shape" in text
    assert "steps per epoch: 8 (one bucket: epochs are joined" in text


# What is printed


def run_plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vidlab", "plan", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_plan_is_printed_and_nothing_is_left_behind(tmp_path):
    clips = ["data.source.train_clips=40", "data.source.val_clips=4", f"data.source.cache_dir={tmp_path / 'cache'}"]
    work = tmp_path / "work"
    work.mkdir()
    run = run_plan(work, "data=moving_shapes", "data.bucketing.max_tokens=4096", "world_size=4", *clips)
    assert run.returncode == 0, run.stderr
    for text in ("world_size=4", "8x32x32", "3072 to 4096 tokens in a frame", "dropped: none", "steps per epoch: 1 ",
                 "padding waste: 0.00 %", "bound on the difference between two steps: 0.0 %"):  # fmt: skip
        assert text in run.stdout
    assert list(work.iterdir()) == []


def test_every_fact_of_a_plan_is_printed(tmp_path):
    shapes = [(9, 64, 64)] * 31 + [(5, 64, 64)] * 20 + [(9, 8, 64)] * 3 + [(5, 48, 64)]
    planned = plan_buckets(index_of(tmp_path, shapes), Bucketing(**RULE, tail="drop"), 2, 0, 4)
    text = "\n".join(report(planned))
    assert "dropped: 3 clips, too small" in text
    assert "left out of each epoch: 16 clips that fill no step" in text
    assert "ratio 9:16 is not used: it needs data.bucketing.max_tokens=36864" in text
    assert "padding waste: 0.00 %" in text and "steps per epoch: 4" in text
    with_rare = index_of(tmp_path / "more", [(9, 64, 64)] * 30 + [(5, 48, 64)] * 40 + [(9, 48, 64)] * 2)
    text = "\n".join(report(plan_buckets(with_rare, Bucketing(**RULE), 2, 0, 4)))
    assert "moved: 2 clips from 9x48x64 to 5x48x64, too few to fill a step" in text
    # batches of 2 x 12288 or 4 x 6144 tokens; 30 clips fill 32 places and 42 fill 48: 2 x 12288 + 6 x 6144 of 688128
    assert "padding waste: 8.93 % of tokens are of clips repeated" in text


def test_world_size_of_the_trainer_and_of_the_command_line(monkeypatch, tmp_path):
    index = index_of(tmp_path, [(8, 32, 32)] * 40)

    def text(**settings) -> str:
        data = SimpleNamespace(name="x", seed=0, corrupt={}, data=SimpleNamespace(train=index, val=[0], total=44))
        data.planned = lambda world_size: plan_buckets(index, Bucketing().completed(8, 32, 32, 1), 4, 0, world_size)
        from omegaconf import OmegaConf

        cfg = OmegaConf.create({"data": {}, "trainer": {"devices": 2, "num_nodes": 3}, **settings})
        monkeypatch.setattr("vidlab.lab.cli.hydra_main.instantiate", lambda node, key: data)
        return text_of(cfg)

    assert "training clips: 40 of 44 in the index, 1 held out" in text() and "steps per epoch: 2 (one bucket" in text()
    assert "world_size=6" in text() and "world_size=5" in text(world_size=5)
    assert "world_size=1" in text(trainer={"devices": "auto"})
    assert "world_size=3" in text(trainer={"devices": 6, "sequence_parallel": 2})
    with pytest.raises(UserError, match=r"trainer\.sequence_parallel=0"):
        text(trainer={"devices": 6, "sequence_parallel": 0})
    with pytest.raises(UserError, match="6 processes do not divide into teams of 4"):
        text(trainer={"devices": 6, "sequence_parallel": 4})
    with pytest.raises(UserError, match="world_size=0"):
        text(world_size=0)


# Two processes

GLOO = """
import json, sys
import torch.distributed as dist
from vidlab.data.samplers.bucketed import plan_buckets
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.storage.index import ClipIndex
folder, rank, rule = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
plan = plan_buckets(ClipIndex.open(folder), Bucketing(**rule), 3, 0, dist.get_world_size()).plan
steps = range(plan.steps_per_epoch)
mine = [[str(plan.bucket(n)), [v.position for v in plan.batch(n, dist.get_rank())]] for n in steps]
both = [None, None]
dist.all_gather_object(both, mine)
if rank == 0:
    print("BOTH", json.dumps(both))
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_share_the_steps(commands, tmp_path):
    shapes = [(9, 64, 64)] * 31 + [(5, 64, 64)] * 20 + [(9, 48, 64)] * 17
    index_of(tmp_path, shapes)
    rule = json.dumps({**RULE, "tail": "drop", "min_clips": 0})
    ranks = [commands.start_code(GLOO, str(tmp_path), str(rank), rule, cwd=tmp_path) for rank in range(2)]
    done = [rank.wait() for rank in ranks]
    assert [one.code for one in done] == [0, 0]
    one, other = json.loads(done[0].out.split("BOTH")[1])
    assert [bucket for bucket, _ in one] == [bucket for bucket, _ in other] and len({bucket for bucket, _ in one}) == 3
    clips = [[clip for _, batch in rank for clip in batch] for rank in (one, other)]
    assert len(clips[0]) == len(clips[1]) and not set(clips[0]) & set(clips[1])
    assert len(set(clips[0])) == len(clips[0])


# At scale

TEN_MILLION = """
import numpy as np
from vidlab.data.samplers.bucketed import plan_buckets
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.module import ClipDataModule
def megabytes(name="VmRSS"):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1024
before, clips, random = megabytes(), 10_000_000, np.random.default_rng(0)
kind = random.choice(np.arange(3, dtype=np.int8), clips, p=[0.8, 0.12, 0.08])
frames = np.clip(24 * random.lognormal(1.3, 0.7, clips).astype(np.float32), 1, 720).astype(np.int32)
height, width = np.array([720, 1280, 480], np.int32)[kind], np.array([1280, 720, 640], np.int32)[kind]
fps = np.full(clips, 24.0)
class Index:
    columns = {"frames": frames, "height": height, "width": width, "fps": fps}
    def numbers(self, name): return self.columns[name]
    def shard_numbers(self): return np.arange(clips, dtype=np.int32) // 512
    def __len__(self): return clips
del kind, frames, height, width, fps
open("/proc/self/clear_refs", "w").write("5")
rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93)
plan = plan_buckets(Index(), rule, 16, 0, 8).plan
plan.batch(0)
held = []
for epoch in range(1, 5):
    plan.batch(epoch * plan.steps_per_epoch, 7)
    held.append(megabytes())
print("FOUND", megabytes("VmHWM") - before, held[-1] - held[0], plan.steps_per_epoch)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_ten_million_clips():
    """A plan with an epoch in 600 MB, the columns it reads included; memory is flat over epochs."""
    run = subprocess.run([sys.executable, "-c", TEN_MILLION], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    megabytes, growth, steps = map(float, run.stdout.split()[1:])
    assert megabytes < 600 and growth < 50 and steps > 10_000
