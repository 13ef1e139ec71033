from collections import Counter

import numpy as np
import pytest

from vidlab.data.plan import Plan, Visit


def stream(plan: Plan, batches: int) -> list[Visit]:
    """The endless stream of clips, put together from all ranks."""
    return [visit for number in range(batches) for rank in range(plan.world_size) for visit in plan.batch(number, rank)]


@pytest.mark.parametrize(("clips", "batch", "world"), [(10, 3, 1), (7, 4, 2), (5, 2, 3), (3, 8, 1), (1, 2, 2)])
def test_every_epoch_visits_every_clip_once(clips, batch, world):
    plan = Plan(clips, batch, seed=1, world_size=world)
    visits = stream(plan, 12)
    assert [visit.epoch for visit in visits] == [place // clips for place in range(len(visits))]
    for epoch in range(len(visits) // clips):
        seen = [visit.position for visit in visits if visit.epoch == epoch]
        assert sorted(seen) == list(range(clips))


def test_ranks_share_one_stream():
    """Two ranks with batches of 2 see, step by step, what one rank with batches of 4 sees."""
    together, apart = Plan(11, 4, seed=5), Plan(11, 2, seed=5, world_size=2)
    for number in range(20):
        assert together.batch(number) == apart.batch(number, 0) + apart.batch(number, 1)
    within_epoch = Counter(visit for visit in stream(apart, 5) if visit.epoch == 0)
    assert max(within_epoch.values()) == 1


def test_batch_does_not_depend_on_the_batches_before_it():
    asked_in_order = Plan(13, 5, seed=2)
    for number in range(40):
        asked_in_order.batch(number)
    for number in (39, 3, 17):
        assert Plan(13, 5, seed=2).batch(number) == asked_in_order.batch(number)


def test_a_batch_may_straddle_two_epochs():
    plan = Plan(5, 4, seed=0)
    assert [visit.epoch for visit in plan.batch(1)] == [0, 1, 1, 1]
    assert plan.batch(1)[0].position == plan.order(0)[4]
    assert [visit.position for visit in plan.batch(1)[1:]] == plan.order(1)[:3].tolist()


def test_the_order_is_fixed_for_good():
    """Recorded once; a change would break the resume of every older run."""
    assert Plan(8, 8, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert Plan(8, 8, seed=7).order(3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_seeds_and_epochs_give_different_orders():
    orders = [tuple(Plan(50, 1, seed).order(epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_orders_are_uniform():
    """Each clip is first with probability 1/6: 100 of 600 epochs, standard deviation 9.1."""
    plan = Plan(6, 1, seed=3)
    first = Counter(int(plan.order(epoch)[0]) for epoch in range(600))
    assert all(100 - 4 * 9.1 < first[clip] < 100 + 4 * 9.1 for clip in range(6))


def test_two_orders_are_held():
    plan = Plan(100, 30, seed=0)
    for number in range(50):
        plan.batch(number)
        assert len(plan._orders) <= 2
    assert isinstance(plan.order(0), np.ndarray)


@pytest.mark.parametrize("arguments", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, -1, 1), (1, 1, 0, 0)])
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        Plan(*arguments)


@pytest.mark.parametrize(("number", "rank"), [(-1, 0), (0, 2), (0, -1)])
def test_impossible_batches_are_refused(number, rank):
    with pytest.raises(ValueError, match="does not exist"):
        Plan(4, 2, 0, world_size=2).batch(number, rank)
