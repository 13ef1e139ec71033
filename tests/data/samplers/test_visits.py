"""A clip that comes again in an epoch is another example: numbered, with its own random numbers, crop and view."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidlab.clip import ClipBatch
from vidlab.data.clip_transform import ClipTransform
from vidlab.data.datasets.base import prepare_once
from vidlab.data.module import ClipDataModule
from vidlab.data.samplers import steps as cut
from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.plan import ClipRef, Plan, PlanState
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.samplers.source_weights import SourceWeights
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode
from vidlab.randomness import KeyedRNG


def assign(*counts: int) -> Assignment:
    codes = np.concatenate([np.full(count, place) for place, count in enumerate(counts)])
    buckets = tuple(Bucket(frames, 16, 16) for frames in range(1, len(counts) + 1))
    return Assignment(buckets, np.random.default_rng(0).permutation(codes).astype(np.int16))


def weigh(found: Assignment, *weights: float) -> SourceWeights:
    groups = np.random.default_rng(9).integers(0, len(weights), len(found.codes)).astype(np.uint8)
    return SourceWeights(found.codes, groups, weights)


def visits_of(plan: Plan, first: int, batches: int) -> list[ClipRef]:
    """In the order they come: batch after batch, and within a batch rank after rank."""
    numbers = range(first, first + batches)
    return [visit for number in numbers for rank in range(plan.world_size) for visit in plan.batch(number, rank)]


def are_counted(visits: Sequence[ClipRef]) -> bool:
    """Whether each says how often its clip has come in its epoch so far."""
    seen: Counter[tuple[int, int]] = Counter()
    for visit in visits:
        if visit.number != seen[visit.epoch, visit.position]:
            return False
        seen[visit.epoch, visit.position] += 1
    return True


@pytest.mark.parametrize("tail", ["pad", "smaller", "drop"])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("window", "segment"), [(10, 1), (10, 40), (10**6, 40)])
@pytest.mark.parametrize("weights", [None, (2.5, 1.0, 0.5), (4.0,)])
def test_visits_count_those_before_in_the_epoch(monkeypatch, tail, world, window, segment, weights):
    monkeypatch.setattr(cut, "SEGMENT", segment)
    found = assign(61, 40, 11, 2)  # of the last, one step of three ranks has every clip several times
    repeats = None if weights is None else weigh(found, *weights)
    plan = BucketPlan(found, [2, 3, 1, 4], 0, world, tail, window, np.arange(0, 114, 5), repeats)
    visits = visits_of(plan, 0, 3 * plan.steps_per_epoch)
    assert are_counted(visits)
    again = sum(stats.repeated for stats in plan.stats) + (sum(repeats.visits(4)) - 114 if repeats else 0)
    assert any(visit.number for visit in visits) == (again > 0)


def test_weight_4_gives_256_noise_levels_to_64_clips():
    found = assign(64)
    plan = BucketPlan(found, [8], 0, repeats=weigh(found, 4.0))
    visits = visits_of(plan, 0, plan.steps_per_epoch)
    assert Counter(visit.number for visit in visits) == dict.fromkeys(range(4), 64)
    positions, epochs, numbers = zip(*visits, strict=True)
    draw = KeyedRNG(0, tuple(map(str, positions)), epochs, visits=numbers)
    assert len(set(draw.uniform("t").tolist())) == 256
    assert len(set(draw.normal("noise", (4,))[:, 0].tolist())) == 256
    # a first visit has the numbers of a run without weights
    first = [place for place, number in enumerate(numbers) if number == 0]
    alone = KeyedRNG(0, tuple(str(positions[place]) for place in first), (0,) * 64)
    assert torch.equal(alone.uniform("t"), draw.uniform("t")[first])


# another batch size or world size

Leg = tuple[int, int, int]  # batches, batch size, world size
LEGS: tuple[Leg, ...] = ((5, 3, 2), (1, 1, 1), (2, 4, 3), (17, 2, 1), (30, 1, 2), (40, 3, 2))


def traveled(make: Callable[[int, int, PlanState], Plan], legs: Sequence[Leg] = LEGS) -> list[ClipRef]:
    """All visits of plans that go on where the one before stopped."""
    start: PlanState = PlanState()
    number, visits = 0, []
    for batches, size, world in legs:
        plan = make(size, world, start)
        visits += visits_of(plan, number, batches)
        number += batches
        start = plan.remaining_after(number)
    return visits


@pytest.mark.parametrize("tail", ["pad", "smaller", "drop"])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0), (2.5, 0.5, 0.0)])
def test_counting_goes_on_with_other_batches(tail, weights):
    found = assign(61, 40, 11)
    repeats = None if weights is None else weigh(found, *weights)

    def make(size: int, world: int, start: PlanState) -> BucketPlan:
        return BucketPlan(found, [size, size + 1, 1], 1, world, tail, 30, np.arange(0, 112, 7), repeats, start)

    visits = traveled(make)
    assert are_counted(visits) and any(visit.number for visit in visits) == (weights is not None or tail != "drop")


def test_the_third_visit_follows_two():
    """One clip, three visits: two before a change, and after it the number 2 with one rank as with two."""
    found = assign(1)
    repeats = weigh(found, 3.0)
    start = BucketPlan(found, [1], 0, repeats=repeats).remaining_after(2)
    assert (start.remaining.tolist(), start.visited.tolist()) == ([1], [2])
    assert BucketPlan(found, [1], 0, 1, repeats=repeats, start=start).batch(2) == (ClipRef(0, 0, 2),)
    both = BucketPlan(found, [1], 0, 2, repeats=repeats, start=start)
    assert [both.batch(2, rank) for rank in range(2)] == [
        (ClipRef(0, 0, 2),),
        (ClipRef(0, 0, 3),),
    ]  # the second fills up
    assert both.batch(3) == (ClipRef(0, 1, 0),)


def test_counting_goes_on_in_a_single_bucket():
    """Buckets that merge: what filled up two buckets comes again in one, under the next number."""
    two, one = assign(30, 21), Assignment((Bucket(1, 16, 16),), np.zeros(51, np.int16))

    def make(size: int, world: int, start: PlanState) -> Plan:
        if size == 4:
            return BucketPlan(two, [size, size], 3, world, start=start)
        return SingleBucketPlan(one, size, 3, world, start)

    for steps in range(1, 14):
        visits = traveled(make, [(steps, 4, 1), (3, 5, 1), (2, 3, 2), (1, 4, 1), (40, 2, 1)])
        assert are_counted(visits)
    # epochs without repeats need no more than they did
    plain = SingleBucketPlan(Assignment.same(Bucket(1, 16, 16), 10), 4, 0)
    assert not any(visit.number for visit in visits_of(plain, 0, 20))


def test_images_and_videos_count_for_themselves():
    codes = np.repeat(np.arange(-1, 2), (14, 30, 25)).astype(np.int16)
    videos = Assignment((Bucket(5, 16, 16), Bucket(9, 16, 16)), codes)
    images = Assignment((Bucket(1, 16, 16),), np.where(codes < 0, 0, -1).astype(np.int16))

    def make(size: int, world: int, start: PlanState) -> InterleavedPlan:
        first_videos, first_images = start.interleaved(3)
        part = BucketPlan(videos, [size, size], 1, world, start=first_videos)
        return InterleavedPlan(part, BucketPlan(images, [size], 1, world, start=first_images), 3)

    visits = traveled(make, [(4, 2, 1), (5, 1, 1), (3, 3, 2), (60, 1, 1), (40, 4, 1)])
    for wanted in (True, False):
        part = [visit for visit in visits if (visit.position < 14) == wanted]
        assert are_counted(part) and any(visit.number for visit in part)


# views


def test_views_take_turns_within_an_epoch_and_across():
    two = ClipTransform(2, 8, 8, views=2)
    assert [[two.number(ClipRef(0, epoch, n)) for n in range(3)] for epoch in range(3)] == [
        [0, 1, 0], [1, 0, 1], [0, 1, 0],
    ]  # fmt: skip
    fresh = ClipTransform(2, 8, 8)
    assert [fresh.key(ClipRef(0, 5, n)) for n in range(3)] == [5, "5.1", "5.2"]
    assert two.key(ClipRef(0, 5, 1)) == 0
    assert ClipTransform(2, 8, 8, random=False).key(ClipRef(0, 5, 1)) == 0


# through the loader


@dataclass
class Noise:
    """Clips of noise, 12 frames of 40 x 40."""

    folder: Path
    clips: int = 8
    broken: tuple[int, ...] = ()
    name: str = "noise"

    def prepare(self) -> Path:
        return prepare_once(self.folder / f"{self.clips}", self.write)

    def write(self, folder: Path) -> None:
        with ShardWriter(folder) as writer:
            for n in range(self.clips):
                frames = np.random.default_rng(n).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
                video = b"broken" if n in self.broken else encode(frames, 8, lossless=True)
                writer.add(f"clip_{n}", video, VideoInfo(12, 40, 40, 8.0, 1.5), ["a", "b"], "train", "web")


def module_of(source: Noise, rank: int = 0, world_size: int = 1, batch_size: int = 4, **settings) -> ClipDataModule:
    rule = {"max_tokens": 1024, "stride": 16, "ratios": [[1, 2], [2, 1]], "temporal_stride": 4}
    rule |= settings.pop("bucketing", {"weights": {"web": 4.0}})
    data = ClipDataModule(source, "noise", 4, 16, 16, batch_size=batch_size, num_workers=0, val_clips=0,
                          max_corrupt=99, seed=3, bucketing=Bucketing(**rule), **settings)  # fmt: skip
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, state=SimpleNamespace(fn="fit"))
    return data


def first(data: ClipDataModule, count: int) -> list[ClipBatch]:
    return list(islice(iter(data.train_dataloader()), count))


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Noise:
    return Noise(tmp_path_factory.mktemp("noise"))


def examples(batches: Sequence[ClipBatch]) -> dict[tuple[str, int, int], tuple[float, torch.Tensor]]:
    """Noise level and pixels of every visit."""
    found = {}
    for batch in batches:
        levels = batch.draw(3).uniform("t").tolist()
        for *visit, t, pixels in zip(batch.keys, batch.epochs, batch.visits, levels, batch.pixels, strict=True):
            assert tuple(visit) not in found
            found[tuple(visit)] = (t, pixels)
    return found


def test_every_visit_is_another_example(noise):
    found = examples(first(module_of(noise), 8))
    assert set(found) == {(f"clip_{n}", 0, visit) for n in range(8) for visit in range(4)}
    assert len({t for t, _ in found.values()}) == 32
    assert len({pixels.numpy().tobytes() for _, pixels in found.values()}) == 32


@pytest.mark.parametrize("change", [{}, {"batch_size": 2}, {"world_size": 2}])
def test_a_resumed_epoch_has_the_examples_that_it_lacks(noise, change):
    whole = examples(first(module_of(noise), 8))
    stopped = module_of(noise)
    before = first(stopped, 3)
    stopped.batches_consumed = 3
    after = []
    for rank in range(change.get("world_size", 1)):
        resumed = module_of(noise, rank, **change)
        resumed.load_state_dict(stopped.state_dict())
        after += first(resumed, -(-5 * 4 // (resumed.batch_size * resumed.world_size)))
    found = examples([batch for batch in (*before, *after) if 0 in batch.epochs])
    own = {visit: example for visit, example in found.items() if visit[1] == 0 and visit[2] < 4}
    assert set(own) == set(whole)
    assert all(own[visit][0] == t and torch.equal(own[visit][1], pixels) for visit, (t, pixels) in whole.items())


def test_numbered_views_are_each_shown_twice(noise):
    found = examples(first(module_of(noise, views=2), 8))
    for n in range(8):
        shown = [found[f"clip_{n}", 0, visit][1] for visit in range(4)]
        assert torch.equal(shown[0], shown[2]) and torch.equal(shown[1], shown[3])
        assert not torch.equal(shown[0], shown[1])
    assert len({t for t, _ in found.values()}) == 32


def test_a_replacement_repeats_no_example_of_its_own(tmp_path):
    """Of four clips three cannot be read; the fourth stands in for them, and is another example each time."""
    broken = module_of(Noise(tmp_path, 4, (0, 1, 2)), bucketing={"weights": {"web": 1.5}})
    found = examples(first(broken, 6))
    assert {key for key, _, _ in found} == {"clip_3"}
    assert len({t for t, _ in found.values()}) == len(found) == 24
