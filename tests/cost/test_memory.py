"""What a step needs of memory, against sums by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from vidlab.cost.memory import MemoryTracker, process_peak

SIZE = 1000  # rows and columns of a float32 matrix of 4 MB
MATRIX = 4 * SIZE**2


def test_a_tensor_counts_until_its_last_use() -> None:
    with FakeTensorMode(), MemoryTracker() as tracker:
        first = torch.empty(SIZE, SIZE)
        view = first[:10].t()
        second = first + 1
        assert tracker.live == tracker.peak == 2 * MATRIX
        del first
        assert tracker.live == 2 * MATRIX  # the view holds it
        del view, second
        assert tracker.live == 0 and tracker.peak == 2 * MATRIX
        tracker.restart()
        assert tracker.peak == 0


def run(recompute: bool) -> tuple[int, int]:
    """Peaks, in matrices, of a forward pass of three sines and of its backward pass."""
    with FakeTensorMode(), MemoryTracker() as tracker:
        x = torch.empty(SIZE, SIZE, requires_grad=True)

        def three(x: torch.Tensor) -> torch.Tensor:
            return x.sin().sin().sin()

        made = checkpoint(three, x, use_reentrant=False) if recompute else three(x)
        loss = made.sum()
        forward = tracker.peak
        del made
        loss.backward()
        return round(forward / MATRIX), round(tracker.peak / MATRIX)


def test_what_is_kept_for_the_backward_pass() -> None:
    # kept are x and the first two sines; the third is made beside them. Backward, expanded ones take no memory: the
    # cosine of the second sine and a product come on top of three
    assert run(recompute=False) == (4, 5)


def test_recomputation_keeps_the_input_alone() -> None:
    forward, backward = run(recompute=True)
    assert forward == 3  # x, and at most two neighbors of the chain
    assert backward >= 5


def test_autocast_keeps_a_copy_of_the_weight() -> None:
    with FakeTensorMode(), MemoryTracker() as tracker:
        x, weight = torch.empty(SIZE, SIZE), torch.empty(SIZE, SIZE, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            made = torch.nn.functional.linear(x, weight)
            assert tracker.live == 2 * MATRIX + 3 * MATRIX // 2  # both operands and the product in two bytes
        assert made.dtype == torch.bfloat16


def test_questions_are_answered() -> None:
    with FakeTensorMode(), MemoryTracker():
        assert bool(torch.ones(3).isfinite().all()) is True
        assert torch.zeros(()).item() == 1.0 and torch.zeros((), dtype=torch.int64).item() == 1


@pytest.mark.parametrize(("dtype", "bytes_"), [(torch.float32, 1_300_000_000), (torch.bfloat16, 1_650_000_000)])
def test_a_process_grows_by_more(dtype: torch.dtype, bytes_: int) -> None:
    assert process_peak(10**9, dtype) == bytes_
    assert process_peak(10**9, dtype, recomputes=True) == 2_250_000_000
