import torch
from torch import nn

from vidlab.cost.traffic import Traffic, TrafficCounter, moved_bytes


def count(work) -> Traffic:
    with TrafficCounter() as counter:
        work()
    return counter.traffic


def test_a_sum_reads_two_tensors_and_writes_one():
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    assert count(lambda: a + b) == Traffic(other=3 * 6 * 4, kernels=1)


def test_an_expanded_argument_counts_as_what_is_there():
    a, b = torch.zeros(4, 3), torch.zeros(3)
    assert moved_bytes(b.expand(4, 3)) == 12
    assert count(lambda: a + b) == Traffic(other=48 + 12 + 48, kernels=1)


def test_views_and_empty_tensors_move_nothing():
    a = torch.zeros(4, 3)
    assert (
        count(lambda: (a.T, a.view(-1), a[1:], torch.empty_like(a), a.unflatten(0, (2, 2)).flatten(0, 1))) == Traffic()
    )


def test_in_place_operators_read_and_write():
    a = torch.zeros(4)
    assert count(lambda: a.add_(1)) == Traffic(other=32, kernels=1)


def test_products_and_casts_are_apart_on_the_meta_device():
    linear = nn.Linear(8, 4, bias=False, device="meta")
    x = torch.empty(2, 8, device="meta")
    assert count(lambda: linear(x)).products == 4 * (16 + 32 + 8)
    assert count(lambda: x.bfloat16()) == Traffic(other=64 + 32, kernels=1)


def test_what_is_paused_or_added_by_hand():
    a = torch.zeros(4)
    with TrafficCounter() as counter:
        with counter.paused():
            a.add(1)
        counter.add("kernel", Traffic(other=7, kernels=1))
    assert counter.traffic == Traffic(other=7, kernels=1) and counter.by_operator == {"kernel": 7}
