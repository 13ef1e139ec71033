import calendar
import logging
import time

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from vidlab.callbacks import forecast as module_of_forecast
from vidlab.callbacks import progress as module_of_progress
from vidlab.callbacks.forecast import Forecast, Remaining, clock_time, duration, peak_memory, validations_left
from vidlab.callbacks.progress import StepProgress, _remaining
from vidlab.callbacks.validate_at_end import ValidateAtEnd


class Clock:
    """Seconds that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(forecast: Forecast, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        forecast.stepped(step)


def test_the_first_step_does_not_count_and_validations_do_not_slow_the_pace():
    clock = Clock()
    forecast = Forecast(clock)
    forecast.validation_started()
    clock.now += 6
    forecast.validation_ended()  # before training: 6 s each
    forecast.start(0)
    assert forecast.seconds_left(Remaining(100, 1)) is None
    run(forecast, clock, range(1, 2), 30.0)
    assert forecast.steps_per_second is None and forecast.elapsed == 30
    run(forecast, clock, range(2, 12), 0.5)
    assert forecast.steps_per_second == pytest.approx(2)
    assert forecast.seconds_left(Remaining(steps=89, validations=2)) == pytest.approx(89 / 2 + 2 * 6)
    forecast.validation_started()
    clock.now += 4
    forecast.validation_ended()
    run(forecast, clock, range(12, 22), 0.5)
    assert forecast.steps_per_second == pytest.approx(2)
    assert forecast.seconds_left(Remaining(79, 1)) == pytest.approx(79 / 2 + 4)
    assert forecast.seconds_left(Remaining(79, 1, at_most=9)) == 9


def test_a_resumed_run_counts_its_own_steps():
    clock = Clock()
    forecast = Forecast(clock)
    forecast.start(1000)
    run(forecast, clock, range(1001, 1012), 2.0)
    assert forecast.steps == 10 and forecast.steps_per_second == pytest.approx(0.5)
    assert forecast.seconds_left(Remaining(589, 0)) == pytest.approx(2 * 589)


def test_accumulated_batches_are_one_step():
    clock = Clock()
    forecast = Forecast(clock)
    forecast.start(0)
    for step in (0, 0, 1, 1, 1, 2, 2, 2, 3):
        clock.now += 1
        forecast.stepped(step)
    assert forecast.steps == 2 and forecast.steps_per_second == pytest.approx(1 / 3)


@pytest.mark.parametrize(("step", "last", "per_step", "interval", "left"), [
    (10, 1600, 1, 800, 2),             # at 800 and 1600
    (800, 1600, 1, 800, 1),            # the one of this step is over
    (10, 1000, 1, 800, 2),             # at 800 and after the last
    (10, 100, 4, 100, 4),              # 400 batches, every 100
    (10, 100, 1, float("inf"), 1),
    (100, 100, 1, 50, 0),
])  # fmt: skip
def test_validations_that_are_still_to_come(step, last, per_step, interval, left):
    assert validations_left(step, last, per_step, interval) == left


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "0 s"), (45.4, "45 s"), (235, "3 min 55 s"), (7500, "2 h 5 min"), (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
])  # fmt: skip
def test_durations_in_words(seconds, said):
    assert duration(seconds) == said


def test_another_day_has_its_date(monkeypatch):
    monkeypatch.setattr(module_of_forecast.time, "localtime", time.gmtime)
    now = float(calendar.timegm((2026, 3, 31, 23, 0, 0)))
    assert clock_time(59 * 60, now) == "23:59" and clock_time(61 * 60, now) == "2026-04-01 00:01"


def test_the_memory_of_a_process_is_in_bytes():
    assert 50e6 < peak_memory(torch.device("cpu")) < 100e9


def batches(make_batch, count):
    return [make_batch(number=number) for number in range(count)]


@pytest.fixture
def told(make_module, make_batch, make_trainer, caplog, monkeypatch):
    """Lines of a training with one fifth of a second between two looks at the clock."""

    def train(steps, **settings):
        clock = Clock()

        def tick() -> float:
            clock.now += 0.2
            return clock.now

        bar = StepProgress(line_seconds=settings.pop("line_seconds", 1e9))
        bar._forecast = Forecast(tick)
        monkeypatch.setattr(module_of_progress.time, "monotonic", tick)
        with caplog.at_level(logging.INFO, logger=module_of_progress.__name__):
            trainer = make_trainer(max_steps=steps, callbacks=[ValidateAtEnd()], **settings)
            trainer.callbacks.append(bar)
            trainer.fit(make_module(), batches(make_batch, steps), batches(make_batch, 1))
        return [record.getMessage() for record in caplog.records if record.name == module_of_progress.__name__]

    return train


def test_a_run_tells_its_end_once_within_its_first_steps(told):
    (line,) = told(24)
    assert "steps/s: the run will end at about " in line and "GB of memory so far" in line


def test_lines_without_a_terminal_name_the_end(told):
    lines = told(6, line_seconds=0.1)
    assert any("ends " in line and "steps/s" in line and line.startswith("step 3/6") for line in lines)


def test_what_ends_a_run(make_trainer):
    trainer = make_trainer(max_steps=-1, callbacks=[Timer("00:00:01:00")])
    remaining = _remaining(trainer)
    assert remaining is not None and remaining.at_most == 60 and remaining.steps > 10**12
    assert _remaining(make_trainer(max_steps=-1, max_epochs=-1)) is None
