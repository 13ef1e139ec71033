"""Orders that go on with another batch size or number of processes: every clip of every epoch once, as before."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from vidlab.data.samplers.assignment import Assignment, Bucket
from vidlab.data.samplers.bucket_plan import BucketPlan
from vidlab.data.samplers.interleaved import InterleavedPlan
from vidlab.data.samplers.loader_history import LoaderHistory, LoaderSettings
from vidlab.data.samplers.plan import Plan, PlanState
from vidlab.data.samplers.single_bucket import SingleBucketPlan
from vidlab.data.samplers.source_weights import SourceWeights


@dataclass(frozen=True)
class Leg:
    """So many batches with these settings."""

    batches: int
    batch_size: int
    world: int


# several changes inside one epoch, and across epochs; the first and the last leg have the same settings
LEGS = (Leg(5, 3, 2), Leg(1, 1, 1), Leg(2, 4, 3), Leg(17, 2, 1), Leg(30, 1, 2), Leg(40, 3, 2))


def travel(make: Callable[[Leg, PlanState], Plan], legs: Sequence[Leg] = LEGS):
    """The plans of the legs and all their visits, by (plan, batch number, rank)."""
    start: PlanState = PlanState()
    number, plans, visits = 0, [], []
    for leg in legs:
        plan = make(leg, start)
        plans.append(plan)
        for _ in range(leg.batches):
            visits += [(plan, number, visit) for rank in range(leg.world) for visit in plan.batch(number, rank)]
            number += 1
        start = plan.remaining_after(number)
    return plans, visits


def assign(counts: Sequence[int], dropped: int = 0) -> Assignment:
    codes = np.concatenate([np.full(dropped, -1), *(np.full(count, place) for place, count in enumerate(counts))])
    buckets = tuple(Bucket(frames, 16, 16) for frames in range(1, len(counts) + 1))
    return Assignment(buckets, np.random.default_rng(0).permutation(codes).astype(np.int16))


def whole_epochs(visits) -> dict[int, Counter[int]]:
    """Visits of each clip in every epoch but the last."""
    last = max(visit.epoch for _, _, visit in visits)
    found: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(last)}
    for _, _, visit in visits:
        if visit.epoch < last:
            found[visit.epoch][visit.position] += 1
    return found


@pytest.mark.parametrize("clips", [7, 50, 300])
def test_one_stream_goes_on_where_it_stopped(clips):
    """The clips come in the very order of a run without a change: the stream is cut elsewhere, and that is all."""
    alone = Assignment.same(Bucket(1, 16, 16), clips)
    _, visits = travel(lambda leg, start: SingleBucketPlan(alone, leg.batch_size, 5, leg.world, start))
    stream = SingleBucketPlan(alone, 1, 5)
    assert [visit for _, _, visit in visits] == [stream.batch(place)[0] for place in range(len(visits))]
    some = assign([clips], dropped=4)
    _, joined = travel(lambda leg, start: SingleBucketPlan(some, leg.batch_size, 5, leg.world, start))
    expected = SingleBucketPlan(some, 1, 5)
    assert [visit for _, _, visit in joined] == [expected.batch(place)[0] for place in range(len(joined))]


@pytest.mark.parametrize("tail", ["pad", "smaller"])
@pytest.mark.parametrize("window", [6, 10**6])
def test_buckets_go_on_without_repeating_or_skipping(tail, window):
    """Each clip once an epoch, and besides those only what fills up the end of a bucket, which is counted."""
    found = assign([61, 40, 11], dropped=9)

    def make(leg: Leg, start: PlanState) -> BucketPlan:
        sizes = [leg.batch_size, leg.batch_size + 1, 1]
        return BucketPlan(found, sizes, 1, leg.world, tail, window, np.arange(0, 121, 10), start=start)

    plans, visits = travel(make)
    epochs = whole_epochs(visits)
    assert len(epochs) >= 2
    kept = set(np.flatnonzero(found.codes >= 0).tolist())
    for epoch, seen in epochs.items():
        assert set(seen) == kept
        filled = sum(stats.repeated for plan in plans for stats in (*plan._rest.buckets, *plan.stats)
                     if epoch in (plan.start.epoch, plan.start.epoch + 1))  # fmt: skip
        assert seen.total() - len(seen) <= filled
    for plan, number, visit in visits:
        assert found.buckets[found.codes[visit.position]] == plan.bucket(number)


def test_clips_that_fill_up_do_not_count_as_visited():
    """5 clips in steps of 4: the second step repeats 3 clips, whose own visit may be still to come."""
    found = assign([5, 40])
    for epoch in range(8):
        plan = BucketPlan(found, [4, 4], 0, start=PlanState(0, epoch))
        for number in range(plan.steps_per_epoch):
            left = plan.remaining_after(number)
            rest = BucketPlan(found, [1, 1], 0, start=left)
            own = 45 if left.remaining is None else int(left.remaining.sum())
            after = [rest.batch(step)[0].position for step in range(number, number + own)]
            assert len(set(after)) == own and rest.epoch_at(number + own) == epoch + 1
            before = {visit.position for step in range(number) for visit in plan.batch(step)}
            assert before | set(after) == set(range(45))


def test_what_is_dropped_at_the_end_of_an_epoch_is_counted():
    """Exact up to the tail: with tail=drop, a clip is visited once or belongs to what the last plan left out."""
    found = assign([61, 40])
    _, visits = travel(lambda leg, start: BucketPlan(found, [leg.batch_size] * 2, 1, leg.world, "drop", start=start))
    for epoch, seen in whole_epochs(visits).items():
        assert set(seen.values()) == {1}
        ending = [plan for plan, _, visit in visits if visit.epoch == epoch][-1]
        buckets = ending._rest.buckets if ending.start.epoch == epoch and ending._rest.buckets else ending.stats
        assert 101 - len(seen) == sum(stats.left_out for stats in buckets)


def test_weights_go_on_as_well():
    """Clips visited several times in an epoch, or not at all, have the visits they would have had."""
    found = assign([40, 25], dropped=5)
    groups = np.random.default_rng(9).integers(0, 3, 70).astype(np.uint8)
    repeats = SourceWeights(found.codes, groups, [2.5, 0.5, 0.0])

    def make(leg: Leg, start: PlanState) -> BucketPlan:
        return BucketPlan(found, [1, 1], 0, leg.world, repeats=repeats, start=start)

    _, visits = travel(make, [Leg(20, 1, 1), Leg(7, 1, 1), Leg(33, 1, 1), Leg(120, 1, 1)])
    plain = BucketPlan(found, [1, 1], 0, repeats=repeats)
    for epoch, seen in whole_epochs(visits).items():
        steps = range(epoch * plain.steps_per_epoch, (epoch + 1) * plain.steps_per_epoch)
        assert seen == Counter(plain.batch(step)[0].position for step in steps)


def test_buckets_that_merge_otherwise_go_on_as_well():
    """A larger step merges rare buckets: from one bucket to two, and back to one, in the middle of an epoch."""
    two = assign([30, 20])
    one = Assignment((Bucket(1, 16, 16),), np.zeros(50, np.int16))

    def make(leg: Leg, start: PlanState) -> Plan:
        if leg.batch_size == 2:
            return BucketPlan(two, [2, 2], 3, leg.world, "drop", start=start)
        return SingleBucketPlan(one, leg.batch_size, 3, leg.world, start)

    _, visits = travel(make, [Leg(4, 5, 1), Leg(6, 2, 1), Leg(40, 1, 1)])
    assert set(whole_epochs(visits)[0].values()) == {1} and len(whole_epochs(visits)[0]) == 50


def test_images_and_videos_go_on_each_for_itself():
    images, videos = assign([14]), assign([0, 30, 25])

    def make(leg: Leg, start: PlanState) -> InterleavedPlan:
        first_videos, first_images = start.interleaved(3)
        return InterleavedPlan(
            BucketPlan(videos, [1, leg.batch_size, leg.batch_size], 1, leg.world, start=first_videos),
            SingleBucketPlan(images, leg.batch_size, 1, leg.world, first_images),
            3,
        )

    legs = [Leg(4, 2, 1), Leg(5, 1, 1), Leg(3, 3, 2), Leg(60, 1, 1)]
    _, visits = travel(make, legs)
    parts = [[(p, n, v) for p, n, v in visits if (n % 3 == 2) == wanted] for wanted in (True, False)]
    for part, clips in zip(parts, (14, 55), strict=True):
        seen = whole_epochs(part)[0]
        assert len(seen) == clips and sum(seen.values()) <= clips + 8  # the pads of two buckets
    assert set(whole_epochs(parts[0])[0].values()) == {1}
    assert all(plan.bucket(number).frames == 1 for plan, number, _ in parts[0])


def test_a_change_at_the_end_of_an_epoch_needs_no_rest():
    found = assign([12, 12])
    plan = BucketPlan(found, [2, 2], 0)
    for number, epoch in ((0, 0), (12, 1), (24, 2)):
        left = plan.remaining_after(number)
        assert (left.number, left.epoch, left.remaining) == (number, epoch, None)
    assert plan.remaining_after(13).remaining.sum() == 22 and plan.epoch_at(13) == 1
    ended = SingleBucketPlan(Assignment.same(Bucket(1, 16, 16), 10), 5, 0).remaining_after(4)
    assert ended.remaining is None and ended.epoch == 2


def test_ranks_stay_disjoint_and_equal_after_a_change():
    found = assign([61, 40, 11])
    start = BucketPlan(found, [3, 2, 1], 1, 2).remaining_after(9)
    plan = BucketPlan(found, [2, 2, 2], 1, 3, start=start)
    for number in range(9, 9 + sum(stats.steps for stats in plan._rest.buckets)):
        batches = [plan.batch(number, rank) for rank in range(3)]
        assert len({len(batch) for batch in batches}) == 1
    with pytest.raises(ValueError, match="batch 8 of rank 0"):
        plan.batch(8)


def test_a_history_keeps_what_it_needs():
    first, second = LoaderSettings(0, 1, 4), LoaderSettings(10, 2, 4)
    history = LoaderHistory(0, (first,))
    assert history.continued(LoaderSettings(10, 1, 4)) is history
    grown = history.continued(second)
    assert grown.segments == (first, second) and LoaderHistory.of(grown.state()) == grown
    # a segment without a batch is forgotten; the same settings before and after it are one segment again
    assert grown.continued(LoaderSettings(10, 1, 4)) == history
    assert grown.continued(LoaderSettings(10, 3, 4)).segments == (first, LoaderSettings(10, 3, 4))
    assert str(LoaderSettings(0, 2, 4, 512)) == "2 x 4 (processes x data.batch_size, at most 512 tokens)"
