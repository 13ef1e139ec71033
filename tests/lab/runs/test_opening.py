import pytest

from vidlab.cost.flops import ModelCost
from vidlab.lab.runs.opening import in_words, opening


def test_size_of_the_job_and_least_memory():
    """20 bytes for each parameter: weight, gradient, average and two moments of four."""
    line = opening(ModelCost(3_410_000, 128, 0), (8, 32, 32), clips_per_step=16)
    assert line.startswith("3.41 M parameters, 128 tokens for 8 frames of 32 x 32, 16 clips a step; ")
    assert "take 68.2 MB of memory on each device" in line


@pytest.mark.parametrize(("number", "said"), [(834, "834 "), (1500, "1.5 k"), (11.2e9, "11.2 G")])
def test_numbers_in_words(number, said):
    assert in_words(number) == said


def test_devices_that_share_the_weights_out():
    assert "take 34.1 MB of memory on each device" in opening(ModelCost(3_410_000, 128, 0), (8, 32, 32), 16, shards=2)
