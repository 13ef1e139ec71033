import pytest

from vidlab.training.step_interval import StepInterval


def dues(interval: StepInterval, steps: list[int], start: int | None = None) -> list[int]:
    """The steps at which something is due, among those that ``Trainer.global_step`` shows after each batch."""
    if start is not None:
        interval.start(start)
    return [step for step in steps if interval.due(step)]


def test_once_for_each_multiple_while_batches_accumulate():
    assert dues(StepInterval(2), [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4], start=0) == [2, 4]


@pytest.mark.parametrize("start", [0, None])
def test_nothing_is_due_before_the_first_step(start):
    assert dues(StepInterval(1), [0, 0, 1], start=start) == [1]


def test_a_resumed_training_does_not_repeat_the_step_it_begins_at():
    assert dues(StepInterval(4), [4, 4, 5, 6, 7, 8], start=4) == [8]


def test_without_an_interval_nothing_is_due() -> None:
    assert dues(StepInterval(None), [0, 1, 2, 3], start=0) == []
