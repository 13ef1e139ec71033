import sys
import time

import pytest
import torch

from vidlab.lab.evaluation.resource_usage import profile, timed

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")


def fill(mib: int) -> torch.Tensor:
    """Memory that is written, so that the system really gives it."""
    return torch.ones(mib * 2**18)


@LINUX
def test_the_peak_counts_what_was_given_back_and_what_is_kept():
    def work() -> torch.Tensor:
        for_a_moment = fill(96)
        kept = fill(32)
        del for_a_moment
        return kept

    made, found = profile(work, "cpu")
    assert made.shape == (2**23,) and found.peak_mib == pytest.approx(128, abs=16)


@LINUX
def test_memory_that_was_freed_before_does_not_hide_what_is_needed_next():
    for _ in range(2):
        _, found = profile(lambda: fill(64).sum(), "cpu")
        assert found.peak_mib == pytest.approx(64, abs=12)


def test_seconds():
    _, found = profile(lambda: time.sleep(0.05), "cpu")
    made, seconds = timed(lambda: time.sleep(0.05) or 7, "cpu")
    assert 0.05 <= found.seconds < 1 and 0.05 <= seconds < 1 and made == 7
