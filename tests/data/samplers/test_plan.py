from collections import Counter

import numpy as np
import pytest

from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan, blocks_of
from vidlab.data.samplers.bucketed import Balance
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.plan import ClipRef, Plan
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.samplers.source_weights import SourceWeights


def one_shape(clips: int, batch_size: int, seed: int, world_size: int = 1) -> SingleBucketPlan:
    """The plan of data that is not bucketed."""
    return SingleBucketPlan(Assignment.same(Bucket(8, 16, 16), clips), batch_size, seed, world_size)


def stream(plan: Plan, batches: int) -> list[ClipRef]:
    """The endless stream of clips, put together from all ranks."""
    return [visit for number in range(batches) for rank in range(plan.world_size) for visit in plan.batch(number, rank)]


@pytest.mark.parametrize(("clips", "batch", "world"), [(10, 3, 1), (7, 4, 2), (5, 2, 3), (3, 8, 1), (1, 2, 2)])
def test_every_epoch_visits_every_clip_once(clips, batch, world):
    plan = one_shape(clips, batch, seed=1, world_size=world)
    visits = stream(plan, 12)
    assert [visit.epoch for visit in visits] == [place // clips for place in range(len(visits))]
    for epoch in range(len(visits) // clips):
        seen = [visit.position for visit in visits if visit.epoch == epoch]
        assert sorted(seen) == list(range(clips))


def test_ranks_share_one_stream():
    """Two ranks with batches of 2 see, step by step, what one rank with batches of 4 sees."""
    together, apart = one_shape(11, 4, seed=5), one_shape(11, 2, seed=5, world_size=2)
    for number in range(20):
        assert together.batch(number) == apart.batch(number, 0) + apart.batch(number, 1)
    within_epoch = Counter(visit for visit in stream(apart, 5) if visit.epoch == 0)
    assert max(within_epoch.values()) == 1


def test_batch_does_not_depend_on_the_batches_before_it():
    asked_in_order = one_shape(13, 5, seed=2)
    for number in range(40):
        asked_in_order.batch(number)
    for number in (39, 3, 17):
        assert one_shape(13, 5, seed=2).batch(number) == asked_in_order.batch(number)


def test_a_batch_may_straddle_two_epochs():
    plan = one_shape(5, 4, seed=0)
    assert [visit.epoch for visit in plan.batch(1)] == [0, 1, 1, 1]
    assert plan.batch(1)[0].position == plan.order(0)[4]
    assert [visit.position for visit in plan.batch(1)[1:]] == plan.order(1)[:3].tolist()


def test_the_order_is_fixed_for_good():
    """Recorded once; a change would break the resume of every older run."""
    assert one_shape(8, 8, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert one_shape(8, 8, seed=7).order(3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_seeds_and_epochs_give_different_orders():
    orders = [tuple(one_shape(50, 1, seed).order(epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_orders_are_uniform():
    """Each clip is first with probability 1/6: 100 of 600 epochs, standard deviation 9.1."""
    plan = one_shape(6, 1, seed=3)
    first = Counter(int(plan.order(epoch)[0]) for epoch in range(600))
    assert all(100 - 4 * 9.1 < first[clip] < 100 + 4 * 9.1 for clip in range(6))


def test_two_orders_are_held():
    plan = one_shape(100, 30, seed=0)
    for number in range(50):
        plan.batch(number)
        assert len(plan._orders) <= 2
    assert isinstance(plan.order(0), np.ndarray)


@pytest.mark.parametrize("arguments", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, -1, 1), (1, 1, 0, 0)])
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        one_shape(*arguments)


@pytest.mark.parametrize(("number", "rank"), [(-1, 0), (0, 2), (0, -1)])
def test_impossible_batches_are_refused(number, rank):
    with pytest.raises(ValueError, match="does not exist"):
        one_shape(4, 2, 0, world_size=2).batch(number, rank)


def assign(*counts: int, dropped: int = 0, seed: int = 0) -> Assignment:
    """Buckets of 1, 2, ... frames with so many clips each, in shuffled order."""
    codes = np.concatenate([np.full(dropped, -1), *(np.full(count, place) for place, count in enumerate(counts))])
    buckets = tuple(Bucket(frames, 16, 16) for frames in range(1, len(counts) + 1))
    return Assignment(buckets, np.random.default_rng(seed).permutation(codes).astype(np.int16))


def epoch_of(plan: Plan, epoch: int) -> list[list[tuple[ClipRef, ...]]]:
    """The batches of all ranks in all steps of an epoch."""
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [[plan.batch(step, rank) for rank in range(plan.world_size)] for step in steps]


def positions_of(steps: list[list[tuple[ClipRef, ...]]]) -> list[int]:
    return [visit.position for step in steps for batch in step for visit in batch]


def test_clips_in_no_bucket_do_not_move_those_in_one():
    """Recorded orders stay: the clips of one bucket in the order that they have alone."""
    some = assign(17, dropped=4)
    clips = np.flatnonzero(some.codes == 0)
    plan = SingleBucketPlan(some, 17, 5)
    assert [visit.position for visit in plan.batch(0)] == clips[one_shape(17, 17, 5).order(0)].tolist()
    assert plan.same_bucket(0).tolist() == clips.tolist()


@pytest.mark.parametrize("tail", ["drop", "pad", "smaller"])
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("window", [3, 10**6])
def test_an_epoch_of_buckets(tail, world, window):
    """Every clip once or for a counted reason; one bucket in a step; ranks disjoint, but for clips that fill up."""
    found, sizes = assign(103, 40, 11, dropped=9), [4, 3, 2]
    plan = BucketPlan(found, sizes, 1, world, tail, window, blocks=np.arange(0, 163, 10))
    for epoch in (0, 1, 4):
        steps = epoch_of(plan, epoch)
        visits = Counter(positions_of(steps))
        assert all(visit.epoch == epoch for step in steps for batch in step for visit in batch)
        kept = np.flatnonzero(found.codes >= 0)
        left_out = sum(stats.left_out for stats in plan.stats)
        assert len(visits) == len(kept) - left_out and set(visits) <= set(kept.tolist())
        assert visits.total() == len(visits) + sum(stats.repeated for stats in plan.stats)
        for number, step in enumerate(steps, start=epoch * plan.steps_per_epoch):
            bucket = plan.bucket(number)
            codes = {int(found.codes[visit.position]) for batch in step for visit in batch}
            assert [found.buckets[code] for code in codes] == [bucket]
            assert len({len(batch) for batch in step}) == 1
    if tail == "drop":
        assert all(stats.repeated == 0 for stats in plan.stats)
    else:
        assert all(stats.left_out == 0 for stats in plan.stats)
    if tail == "smaller":
        assert all(stats.repeated < world for stats in plan.stats)


def test_tails_by_hand():
    def shares(tail: str) -> list[tuple[int, int, int, int]]:
        plan = BucketPlan(assign(10, 24), [4, 3], 0, 2, tail)
        return [(stats.steps, stats.tail_size, stats.repeated, stats.left_out) for stats in plan.stats]

    assert shares("drop") == [(1, 4, 0, 2), (4, 3, 0, 0)]
    assert shares("pad") == [(2, 4, 6, 0), (4, 3, 0, 0)]
    assert shares("smaller") == [(2, 1, 0, 0), (4, 3, 0, 0)]


def test_tails_leave_out_other_clips_each_epoch():
    plan = BucketPlan(assign(11, 12), [4, 4], 0, 1, "drop")
    missing = [set(range(23)) - set(positions_of(epoch_of(plan, epoch))) for epoch in range(6)]
    assert all(len(clips) == 3 for clips in missing) and len(set().union(*missing)) > 3


def test_bucketed_batches_do_not_depend_on_those_before():
    def make() -> BucketPlan:
        return BucketPlan(assign(50, 60, 70), [3, 2, 1], 2, 2, window=40)

    asked_in_order = make()
    batches = [asked_in_order.batch(number, 1) for number in range(3 * asked_in_order.steps_per_epoch)]
    for number in (len(batches) - 1, 3, asked_in_order.steps_per_epoch, 17):
        assert make().batch(number, 1) == batches[number]
    assert len(asked_in_order._epochs) == 2


def test_the_bucketed_order_is_fixed_for_good():
    """Recorded once; a change would break the resume of every older run."""
    found = Assignment((Bucket(1, 16, 16), Bucket(2, 16, 16)), np.array([0, 1, 0, 1, 1, -1, 0, 0, 1, 0], np.int16))
    plan = BucketPlan(found, [2, 2], seed=3)
    assert [[visit.position for visit in batch] for (batch,) in epoch_of(plan, 0)] == [
        [6, 7],
        [4, 1],
        [7, 0],
        [3, 8],
        [2, 9],
    ]
    assert [[visit.position for visit in batch] for (batch,) in epoch_of(plan, 1)] == [
        [3, 8],
        [0, 6],
        [9, 7],
        [4, 1],
        [6, 2],
    ]


def test_seeds_and_epochs_give_different_bucketed_orders():
    plans = [BucketPlan(assign(30, 30), [1, 1], seed) for seed in range(3)]
    assert len({tuple(positions_of(epoch_of(plan, epoch))) for plan in plans for epoch in range(3)}) == 9


def test_shapes_are_mixed_and_orders_uniform():
    """In one window, the first step is of bucket 0 as often as its share of steps, and each clip is first as often."""
    plan = BucketPlan(assign(6, 3), [1, 1], seed=3)
    first = Counter(plan.batch(epoch * 9)[0].position for epoch in range(900))
    assert all(100 - 4 * 9.5 < first[clip] < 100 + 4 * 9.5 for clip in range(9))


def test_reads_stay_local():
    """With windows of 4 shards of 50 clips, at any time few of the 100 shards are read."""
    shards = np.repeat(np.arange(100), 50)
    plan = BucketPlan(assign(2500, 1500, 1000), [4, 4, 4], 0, 2, window=200, blocks=np.arange(0, 5000, 50))
    steps = epoch_of(plan, 0)
    for begin in range(0, len(steps) - 25, 25):  # 25 steps are 200 clips
        assert len(set(shards[positions_of(steps[begin : begin + 25])])) <= 16
    assert len(set(shards[positions_of(steps[:25])]) & set(shards[positions_of(epoch_of(plan, 1)[:25])])) < 8


def test_blocks_are_whole_shards_or_many_small_ones():
    assert blocks_of(np.repeat([7, 3, 9], [600, 1000, 300])).tolist() == [0, 600, 1600]
    assert np.diff(blocks_of(np.arange(10_000))).tolist() == [256] * 39
    assert blocks_of(np.zeros(3_000_000, np.int32)).tolist() == [0]
    assert blocks_of(np.zeros(0, np.int32)).tolist() == []


def weighted(weights: list[float], counts: tuple[int, ...] = (40, 25)) -> tuple[BucketPlan, np.ndarray]:
    found = assign(*counts, dropped=5)
    groups = np.random.default_rng(9).integers(0, len(weights), len(found.codes)).astype(np.uint8)
    repeats = SourceWeights(found.codes, groups, weights)
    return BucketPlan(found, [1] * len(counts), 0, tail="drop", repeats=repeats), groups


def test_weights_are_visits_per_epoch():
    plan, groups = weighted([2.0, 0.5, 0.0, 1.0])
    total: Counter[int] = Counter()
    for epoch in range(8):
        steps = epoch_of(plan, epoch)
        assert len(steps) == plan.steps_per_epoch == sum(stats.visits for stats in plan.stats)
        total.update(positions_of(steps))
    kept = plan.assignment.codes >= 0
    assert {total[clip] for clip in np.flatnonzero(kept & (groups == 0))} == {16}
    assert {total[clip] for clip in np.flatnonzero(kept & (groups == 1))} <= {3, 4, 5}
    assert {total[clip] for clip in np.flatnonzero(kept & (groups == 2))} == {0}
    assert {total[clip] for clip in np.flatnonzero(kept & (groups == 3))} == {8}


def test_weights_of_one_change_nothing():
    found = assign(40, 25, dropped=5)
    repeats = SourceWeights(found.codes, np.zeros(70, np.uint8), [1.0])
    assert epoch_of(BucketPlan(found, [2, 3], 0, repeats=repeats), 1) == epoch_of(BucketPlan(found, [2, 3], 0), 1)


def test_images_and_videos_in_turn():
    """M4V's one to eight: steps 8, 17, 26, ... are of images; both go through their own epochs."""
    images = SingleBucketPlan(assign(10), 2, 0, 2)
    videos = BucketPlan(assign(30, 50), [2, 1], 0, 2)
    plan = InterleavedPlan(videos, images, 9)
    for number in range(200):
        own, part = (number // 9, images) if number % 9 == 8 else (number - number // 9, videos)
        assert plan.batch(number, 1) == part.batch(own, 1) and plan.bucket(number) == part.bucket(own)
        assert np.array_equal(plan.same_bucket(number), part.same_bucket(own))
    seen = [number - number // 9 for number in range(plan.steps_per_epoch) if number % 9 != 8]
    assert seen == list(range(videos.steps_per_epoch))
    # of videos, 8 steps of the one bucket to 25 of the other
    assert plan.step_fractions == pytest.approx((1 / 9, 8 / 9 * 8 / 33, 8 / 9 * 25 / 33))


def synthetic_mix(clips: int) -> tuple[np.ndarray, ...]:
    """80 % 1280x720, 12 % portrait, 8 % 640x480; durations log-normal with median 3.7 s, sigma 0.7; 24 fps."""
    random = np.random.default_rng(0)
    kind = random.choice(3, clips, p=[0.8, 0.12, 0.08])
    frames = np.clip(24 * random.lognormal(1.3, 0.7, clips), 1, 720).astype(np.int32)
    height, width = np.array([720, 1280, 480], np.int32)[kind], np.array([1280, 720, 640], np.int32)[kind]
    return frames, height, width, np.full(clips, 24.0)


@pytest.mark.parametrize("tail", ["drop", "pad", "smaller"])
@pytest.mark.parametrize("budget", [2, 10, 16])
def test_token_balance_on_a_fixed_mix(tail, budget):
    """Equal between ranks always; between steps within the printed bound, below 10 % from ten largest clips on."""
    rule = Bucketing(65536, temporal_stride=4, first_frame_alone=True, max_frames=93)
    world = 4
    found = rule.assign(*synthetic_mix(30_000))
    found = found.merge_rare([size * world for size in rule.batch_sizes(found.buckets, budget)])
    plan = BucketPlan(found, rule.batch_sizes(found.buckets, budget), 0, world, tail)
    balance, tokens = Balance.of(plan.stats, rule), Counter()
    visits: Counter[int] = Counter()
    for number in range(plan.steps_per_epoch):
        batches = [plan.batch(number, rank) for rank in range(world)]
        assert len({len(batch) for batch in batches}) == 1
        tokens[len(batches[0]) * rule.tokens(plan.bucket(number))] += 1
        visits.update(visit.position for batch in batches for visit in batch)
    assert tokens == balance.steps
    assert balance.bound == 1 - min(tokens) / max(tokens)
    if budget >= 10 and tail != "smaller":
        assert balance.bound < 0.1
    assert not found.dropped and len(visits) == 30_000 - sum(stats.left_out for stats in plan.stats)


def test_impossible_bucket_plans_are_refused():
    for settings in ({"seed": -1}, {"world_size": 0}, {"tail": "lose"}, {"window": 0}, {"batch_sizes": [0, 1]}):
        with pytest.raises(ValueError, match="at least 1"):
            BucketPlan(**{"assignment": assign(4, 4), "batch_sizes": [1, 1], "seed": 0, **settings})
    with pytest.raises(ValueError, match="no bucket fills a step"):
        BucketPlan(assign(3, 3), [2, 2], 0, 2, "drop")
    with pytest.raises(ValueError, match="does not exist"):
        BucketPlan(assign(3, 3), [2, 2], 0, 2).batch(0, 2)
    with pytest.raises(ValueError, match="every=1"):
        InterleavedPlan(SingleBucketPlan(assign(3), 1, 0), SingleBucketPlan(assign(3), 1, 0), 1)
