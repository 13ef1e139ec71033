"""Batches that take equal time: the line through two measurements, sizes by hand, and what a checkpoint keeps of it."""

import json

import pytest

from vidlab.data.samplers.assignment import Bucket
from vidlab.data.samplers.buckets import Bucketing
from vidlab.data.samplers.step_times import StepTime, StepTimes, read_step_times, write_step_times
from vidlab.errors import UserError

LARGE, WIDE, SHORT = Bucket(8, 64, 64), Bucket(8, 32, 64), Bucket(4, 32, 32)
TIMES = StepTimes({"8x64x64": StepTime(0.1, 0.05), "8x32x64": StepTime(0.1, 0.02), "4x32x32": StepTime(0.1, 0.01)})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "step_times.json"
    write_step_times(path, TIMES, {"settings": ["model=full3d"]})
    return path


def test_the_line_through_two_measurements():
    line = StepTime.through((4, 0.3), (8, 0.5))
    assert (line.fixed, line.per_clip) == (pytest.approx(0.1), pytest.approx(0.05))
    assert StepTime.through((1, 0.3), (1, 0.3)) == StepTime(0.0, 0.3)  # one size alone says nothing of the rest
    assert StepTime.through((4, 0.5), (8, 0.4)) == StepTime(0.0, 0.05)  # more clips do not take less
    assert StepTime.through((4, 0.1), (8, 0.5)) == StepTime(0.0, 0.0625)  # a step without clips takes no less than none


def test_sizes_that_take_as_long_as_the_largest_bucket(table):
    # 4 clips of the largest take 0.1 + 4 * 0.05 = 0.3 s: (0.3 - 0.1) / 0.02 = 10 and (0.3 - 0.1) / 0.01 = 20
    rule = Bucketing(4096, temporal_stride=1, step_times=str(table))
    buckets = [SHORT, WIDE, LARGE]
    assert rule.batch_sizes(buckets, batch_size=4) == [20, 10, 4]
    assert Bucketing(4096, temporal_stride=1).batch_sizes(buckets, batch_size=4) == [32, 8, 4]
    tokens = 8 * 64 * 64
    assert Bucketing(4096, temporal_stride=1, step_times=str(table), tokens_per_batch=2 * tokens).batch_sizes(
        buckets, batch_size=4
    ) == [10, 5, 2]
    with pytest.raises(UserError, match=r"bucket 1x64x64 .* is not in the table"):
        rule.batch_sizes([Bucket(1, 64, 64), LARGE], batch_size=4)


def test_at_least_one_clip_even_where_the_fixed_part_is_longer():
    assert StepTimes({"8x64x64": StepTime(0, 0.1), "4x32x32": StepTime(0.2, 0.01)}).batch_sizes(
        [SHORT, LARGE], LARGE, 1
    ) == [1, 1]


def test_a_checkpoint_keeps_the_times_and_not_where_they_lay(table, tmp_path):
    plain, rule = Bucketing(4096), Bucketing(4096, step_times=str(table))
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(table.read_bytes())
    as_text = [json.dumps(one.recorded, sort_keys=True) for one in (rule, Bucketing(4096, step_times=str(moved)))]
    assert as_text[0] == as_text[1] != json.dumps(plain.recorded, sort_keys=True)
    assert not {"times", "step_times"} & plain.recorded.keys()  # checkpoints of earlier versions go on
    assert rule.completed(8, 64, 64, 1).times == TIMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Measure it once: python -m vidlab step_times"),
        ("[]", "no table of step times"),
        ("{", "no table of step times"),
        ('{"buckets": {"8x64x64": {"fixed": -1, "per_clip": 1}}}', "are no seconds"),
        ('{"buckets": {"8x64x64": {"fixed": 0, "per_clip": 0}}}', "are no seconds"),
        ('{"buckets": {"8x64x64": {"fixed": 0}}}', "KeyError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "step_times.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_step_times(path)
